// The model, away from the page's thread: an unmodified transformers.js on the bundle's own files.

import {
  AutoProcessor, BaseStreamer, LlavaForConditionalGeneration, RawImage, StoppingCriteria, env,
} from '/client/transformers.min.js';
import { square } from '/pixels.js';

const BUNDLE = 'bundle';
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
    const text = this.tokenizer.decode(this.ids, { skip_special_tokens: true }).trim();
    if (!text.endsWith(INCOMPLETE)) post('piece', { text });
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

let processor, model, picture, flag;

const post = (type, data = {}) => self.postMessage({ type, ...data });

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
    model = await LlavaForConditionalGeneration.from_pretrained(BUNDLE, { device: 'wasm', progress_callback });
    post('ready', { threads: env.backends.onnx.wasm.numThreads });
  },

  async look({ file }) {
    const { rgb, side } = await square(file, processor.image_processor.config);
    picture = new RawImage(rgb, side, side, 3);
    const { pixel_values } = await processor.image_processor(picture);
    delete model.encode_image;
    const start = performance.now();
    const features = await model.encode_image({ pixel_values });
    const seconds = (performance.now() - start) / 1000;
    model.encode_image = async () => features; // a second question does not look again
    post('seen', { seconds, tokens: features.dims[0] });
  },

  async ask({ question }) {
    const content = [{ type: 'image' }, { type: 'text', text: question }];
    const text = processor.apply_chat_template([{ role: 'user', content }], { add_generation_prompt: true });
    const start = performance.now();
    const inputs = await processor(picture, text);
    const streamer = new Pieces(processor.tokenizer);
    await model.generate({ ...inputs, streamer, stopping_criteria: new Stop(flag) });
    const { ids, times, prompt } = streamer;
    const decoding = (times.at(-1) - times[0]) / 1000;
    post('answered', {
      ids, prompt, first: (times[0] - start) / 1000, rate: (ids.length - 1) / decoding,
    });
  },
};

let queue = Promise.resolve();
self.onmessage = ({ data }) => {
  const handle = () => handlers[data.type](data);
  const failed = (error) => post('failed', { during: data.type, reason: error.message ?? String(error) });
  queue = queue.then(handle).catch(failed);
};
