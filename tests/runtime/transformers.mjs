// Answers questions about pictures with an unmodified transformers.js: bundle, tokens, and the class that opens the
// bundle. A question is a line `{"picture": FILE, "question": TEXT}` on stdin, its answer a line on stdout.
import path from 'node:path';
import readline from 'node:readline';
import * as transformers from '@huggingface/transformers';

const [bundle, count, kind] = process.argv.slice(2);
const { AutoProcessor, RawImage, env } = transformers;
env.allowRemoteModels = false;
env.localModelPath = path.dirname(bundle);
const name = path.basename(bundle);
const processor = await AutoProcessor.from_pretrained(name);
const model = await transformers[kind].from_pretrained(name);
const textFirst = ['Idefics3ForConditionalGeneration', 'SmolVLMForConditionalGeneration'].includes(kind);
for await (const line of readline.createInterface({ input: process.stdin })) {
  const { picture, question } = JSON.parse(line);
  const content = [{ type: 'image' }, { type: 'text', text: question }];
  const text = processor.apply_chat_template([{ role: 'user', content }], { add_generation_prompt: true });
  const image = await RawImage.read(picture);
  const inputs = await (textFirst ? processor(text, [image]) : processor(image, text));
  const output = await model.generate({ ...inputs, max_new_tokens: Number(count), do_sample: false });
  const ids = inputs.input_ids.tolist()[0].map(Number);
  console.log(JSON.stringify({
    text,
    input_ids: ids,
    pixels: Array.from(inputs.pixel_values.data.slice(0, 12)),
    tokens: output.tolist()[0].map(Number).slice(ids.length),
  }));
}
