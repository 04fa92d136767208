// The model, away from the page's thread: an unmodified transformers.js on the bundle's own files.

import {
  AutoModelForImageTextToText, AutoProcessor, BaseStreamer, StoppingCriteria, Tensor, cat, env,
} from '/client/transformers.min.js';
import { decode, views } from '/pixels.js';

const BUNDLE = 'bundle';
const LONGEST = 256; // tokens of an answer, where the bundle does not say
const INCOMPLETE = '\uFFFD'; // a character of several byte tokens, until its last one

env.allowLocalModels = true;
env.allowRemoteModels = false;
env.localModelPath = '/';
env.useBrowserCache = false; // the server's tags say what has changed, this cache could not
env.useWasmCache = false;
env.backends.onnx.wasm.wasmPaths = {
  mjs: new URL('/client/ort-wasm-simd-threaded.mjs', self.location).href,
  wasm: new URL('/client/ort-wasm-simd-threaded.wasm', self.location).href,
};
env.backends.onnx.wasm.numThreads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 4) : 1;

/** Hands out every token when it is there, with all the text so far. */
class Pieces extends BaseStreamer {
  ids = [];
  times = [];
  text = '';
  prompt = null;

  constructor(tokenizer) {
    super();
    this.tokenizer = tokenizer;
  }

  put([tokens]) {
    if (this.prompt === null) {
      this.prompt = tokens.length; // comes first
      return;
    }
    this.ids.push(...tokens.map(Number));
    this.times.push(performance.now());
    this.text = this.tokenizer.decode(this.ids, { skip_special_tokens: true }).trim();
    if (!this.text.endsWith(INCOMPLETE)) post('piece', { text: this.text });
  }

  end() {}
}

/** Set by the page in memory that both see: a message would wait until the answer is complete. */
class Stop extends StoppingCriteria {
  constructor(flag) {
    super();
    this.flag = flag;
  }

  _call(inputs) {
    return inputs.map(() => Atomics.load(this.flag, 0) === 1);
  }
}

let processor, model, flag;
let told; // what the bundle says of its image processor
let messages = []; // the conversation so far
let pictures = []; // all of it, in order
let asked = 0; // pictures that stand in the messages; the others come with the next question

const post = (type, data = {}) => self.postMessage({ type, ...data });

/** A prompt's token ids, in which each picture stands as often as it has visual tokens. */
function tokenized(text) {
  const marker = processor.image_token ?? processor.config.image_token;
  const [first, ...behind] = text.split(marker);
  if (behind.length !== pictures.length) {
    throw new Error(`${marker} stands for a picture, leave it out of what is said`);
  }
  if (pictures[0].rows !== undefined) return processor(text, pictures); // names rows and columns
  const told = behind.map((chunk, i) => marker.repeat(pictures[i].features.dims[0]) + chunk);
  return processor.tokenizer([first, ...told].join('')); // LlavaProcessor repeats the first picture's alone
}

/** One view of arrays [1, views, …], or [1, …] where a model takes a single one. */
function oneOf(arrays, view, count) {
  const tensors = Object.entries(arrays).map(([name, { type, data, dims }]) => {
    const length = data.length / count;
    const values = data.subarray(view * length, (view + 1) * length);
    return [name, new Tensor(type, values, dims.map((size, axis) => (axis === 1 && count > 1 ? 1 : size)))];
  });
  return Object.fromEntries(tensors);
}

/** Visual tokens of a picture, [tokens, hidden], made view by view: memory does not grow with their number. */
async function seen(arrays) {
  const { dims } = arrays.pixel_values;
  const count = dims.slice(0, -3).reduce((product, size) => product * size);
  const features = [];
  for (let view = 0; view < count; view++) {
    post('looking', { view: view + 1, count });
    const found = await model.encode_image(oneOf(arrays, view, count));
    features.push(found.view(-1, found.dims.at(-1)));
  }
  return { features: cat(features), count };
}

/** Most tokens of an answer to a prompt of this many. */
function roomOf(length) {
  const context = model.config.text_config.max_position_embeddings;
  if (length <= context) return context - length + 1;
  throw new Error(`the conversation is ${length} tokens long, the model's context is ${context}: begin a new one`);
}

const handlers = {
  async load(message) {
    flag = message.flag;
    const files = new Map();
    const progress_callback = ({ status, file, loaded }) => {
      if (status !== 'progress') return;
      files.set(file, loaded);
      post('progress', { loaded: [...files.values()].reduce((sum, bytes) => sum + bytes, 0) });
    };
    processor = await AutoProcessor.from_pretrained(BUNDLE);
    told = processor.config.image_processor ? processor.config : processor.image_processor.config;
    const all = (name) => [pictures.map((picture) => picture[name])];
    processor.components.image_processor = async () => ({ rows: all('rows'), cols: all('cols') }); // views are ours
    model = await AutoModelForImageTextToText.from_pretrained(BUNDLE, { device: 'wasm', progress_callback });
    post('ready', { threads: env.backends.onnx.wasm.numThreads });
  },

  async look({ file, url, conversation }) {
    const { rows, cols, ...arrays } = views(await decode(file), told);
    delete model.encode_image;
    const start = performance.now();
    const { features, count } = await seen(arrays);
    const seconds = (performance.now() - start) / 1000;
    pictures.push({ features, rows, cols });
    post('seen', { url, conversation, seconds, count, rows, cols, tokens: features.dims[0] });
  },

  async ask({ question }) {
    const fresh = pictures.length - asked;
    const images = Array.from({ length: fresh }, () => ({ type: 'image' }));
    const said = { role: 'user', content: [...images, { type: 'text', text: question }] };
    const text = processor.apply_chat_template([...messages, said], { add_generation_prompt: true });
    const start = performance.now();
    const { input_ids, attention_mask } = await tokenized(text);
    const room = roomOf(input_ids.dims.at(-1));
    model.encode_image = async () => cat(pictures.map(({ features }) => features)); // each was looked at once
    const streamer = new Pieces(processor.tokenizer);
    await model.generate({
      input_ids,
      attention_mask,
      pixel_values: pictures[0].features, // says that there are pictures
      max_new_tokens: Math.min(room, model.generation_config.max_new_tokens ?? LONGEST),
      streamer,
      stopping_criteria: new Stop(flag),
    });
    const { ids, times, prompt } = streamer;
    messages.push(said, { role: 'assistant', content: [{ type: 'text', text: streamer.text }] });
    asked = pictures.length;
    const decoding = (times.at(-1) - times[0]) / 1000;
    post('answered', {
      ids, prompt, first: (times[0] - start) / 1000, rate: (ids.length - 1) / decoding,
    });
  },

  forget({ kept }) {
    [messages, pictures, asked] = [[], kept ? pictures.slice(-1) : [], 0];
  },
};

let queue = Promise.resolve();
self.onmessage = ({ data }) => {
  const handle = () => handlers[data.type](data);
  const failed = (error) => post('failed', { during: data.type, reason: error.message ?? String(error) });
  queue = queue.then(handle).catch(failed);
};
