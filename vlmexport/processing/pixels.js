// Pictures → what a vision encoder is given, value for value as Python makes it: Pillow's filters, transformers' cutting.
// One file without dependencies, for browsers, workers and Node. A browser's own resizing does not filter as Pillow does.

const FRACTION = 22; // bits after the point of Pillow's integer weights
const CHANNELS = 3;
const LARGEST = 2 ** 28; // pixels of a resized picture, before its middle is cut out
const MOST = 4096; // pixels along a side of a picture that is cut into tiles, before it is stretched to whole ones

const sinc = (x) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));

/** Pillow's number of a filter → how far it reaches, and its value at x. */
const FILTERS = {
  1: { reach: 3, at: (x) => (-3 <= x && x < 3 ? sinc(x) * sinc(x / 3) : 0) }, // Lanczos
  2: { reach: 1, at: (x) => Math.max(1 - Math.abs(x), 0) }, // bilinear
  3: { reach: 2, at: cubic },
};

/** Keys' cubic with a = -1/2. */
function cubic(x) {
  const t = Math.abs(x);
  if (t < 1) return (1.5 * t - 2.5) * t * t + 1;
  return t < 2 ? (((t - 5) * t + 8) * t - 4) * -0.5 : 0;
}

/** Of each target pixel: the first source pixel that it reads, and the integer weight of each from there on. */
function weights(length, target, filter) {
  const scale = length / target;
  const stretch = Math.max(scale, 1); // shrinking, the filter grows: antialiasing
  return Array.from({ length: target }, (_, position) => {
    const centre = (position + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - filter.reach * stretch + 0.5), 0);
    const last = Math.min(Math.trunc(centre + filter.reach * stretch + 0.5), length);
    const values = Float64Array.from({ length: last - first }, (_, i) => (
      filter.at((i + first - centre + 0.5) * (1 / stretch))
    ));
    const sum = values.reduce((total, value) => total + value, 0) || 1;
    const integer = (value) => Math.trunc((value / sum) * 2 ** FRACTION + (value < 0 ? -0.5 : 0.5));
    return { first, values: Int32Array.from(values, integer) };
  });
}

/** A picture as wide as `target`. */
function across({ data, width, height }, target, filter) {
  const result = new Uint8ClampedArray(target * height * CHANNELS);
  const columns = weights(width, target, filter);
  for (let y = 0, to = 0; y < height; y++) {
    const row = y * width * CHANNELS;
    for (let x = 0; x < target; x++, to += CHANNELS) {
      const { first, values } = columns[x];
      let [red, green, blue] = [2 ** (FRACTION - 1), 2 ** (FRACTION - 1), 2 ** (FRACTION - 1)];
      for (let i = 0, from = row + first * CHANNELS; i < values.length; i++, from += CHANNELS) {
        red += Math.imul(data[from], values[i]);
        green += Math.imul(data[from + 1], values[i]);
        blue += Math.imul(data[from + 2], values[i]);
      }
      result[to] = red >> FRACTION;
      result[to + 1] = green >> FRACTION;
      result[to + 2] = blue >> FRACTION;
    }
  }
  return { data: result, width: target, height };
}

/** A picture as high as `target`. */
function down({ data, width, height }, target, filter) {
  const row = width * CHANNELS;
  const result = new Uint8ClampedArray(target * row);
  const sums = new Int32Array(row);
  weights(height, target, filter).forEach(({ first, values }, y) => {
    sums.fill(2 ** (FRACTION - 1));
    for (let i = 0, from = first * row; i < values.length; i++, from += row) {
      const weight = values[i];
      for (let x = 0; x < row; x++) sums[x] += Math.imul(data[from + x], weight);
    }
    for (let x = 0, to = y * row; x < row; x++, to++) result[to] = sums[x] >> FRACTION;
  });
  return { data: result, width, height: target };
}

/**
 * An RGB picture in another size, as Pillow resizes it.
 *
 * Pillow rounds to 8 bits between both ways, so their order matters: since version 13 it goes down before across where
 * the height shrinks by more than twice of what the width does.
 * @param {number} resample Pillow's number of a filter: 1 Lanczos, 2 bilinear, 3 bicubic
 */
export function resize(picture, width, height, resample) {
  const filter = FILTERS[resample];
  if (!filter) throw new Error(`resample is ${resample}: 1 (Lanczos), 2 (bilinear) and 3 (bicubic) are known`);
  const ways = [
    (given) => (given.width === width ? given : across(given, width, filter)),
    (given) => (given.height === height ? given : down(given, height, filter)),
  ];
  const [wide, high] = [picture.width - width, picture.height - height];
  if (high > 0 && high > 2 * wide) ways.reverse();
  return ways.reduce((given, way) => way(given), picture);
}

/** A part of a picture. */
function crop({ data, width }, left, top, wide, high) {
  const result = new Uint8ClampedArray(wide * high * CHANNELS);
  for (let y = 0; y < high; y++) {
    const start = ((top + y) * width + left) * CHANNELS;
    result.set(data.subarray(start, start + wide * CHANNELS), y * wide * CHANNELS);
  }
  return { data: result, width: wide, height: high };
}

/** A picture in the middle of a square of one colour. */
function padded(picture, colour) {
  const { data, width, height } = picture;
  const side = Math.max(width, height);
  if (width === height) return picture;
  const result = new Uint8ClampedArray(side * side * CHANNELS);
  for (let i = 0; i < result.length; i++) result[i] = colour[i % CHANNELS];
  const [left, top] = [Math.floor((side - width) / 2), Math.floor((side - height) / 2)];
  for (let y = 0; y < height; y++) {
    const row = data.subarray(y * width * CHANNELS, (y + 1) * width * CHANNELS);
    result.set(row, ((top + y) * side + left) * CHANNELS);
  }
  return { data: result, width: side, height: side };
}

/** RGB of an RGB or RGBA picture; what is transparent shows white, rounded as Pillow does. */
function opaque({ data, width, height }) {
  const channels = data.length / (width * height);
  if (channels === CHANNELS) return { data, width, height };
  if (channels !== 4) throw new Error(`a picture of ${width}x${height} has ${data.length} values: pass RGB or RGBA`);
  const result = new Uint8ClampedArray(width * height * CHANNELS);
  for (let from = 0, to = 0; to < result.length; from += 4) {
    const share = data[from + 3];
    for (let i = 0; i < CHANNELS; i++, to++) {
      const sum = 128 * (data[from + i] * share + 255 * (255 - share) + 128);
      result[to] = ((sum >> 8) + sum) >> 15;
    }
  }
  return { data: result, width, height };
}

/** CLIP's and LLaVA's one view: on a square of the mean colour, resized, its middle cut out, each where it is told. */
function single(picture, config) {
  const { do_pad: pads, do_center_crop: crops, image_mean: mean, crop_size: side } = config;
  const whole = pads ? padded(picture, mean.map((value) => Math.trunc(255 * value))) : picture;
  const sized = config.do_resize === false ? whole : resize(whole, ...size(whole, config.size), config.resample ?? 3);
  const [left, top] = crops ? [sized.width - side.width, sized.height - side.height].map((room) => room >> 1) : [];
  return { pictures: [crops ? crop(sized, left, top, side.width, side.height) : sized], rows: 0, cols: 0 };
}

/** Width and height of a picture whose shortest edge, or whose both, are told. */
function size({ width, height }, told) {
  if (!told.shortest_edge) return [told.width, told.height];
  const short = Math.min(width, height);
  const [wide, high] = [width, height].map((length) => Math.trunc((told.shortest_edge * length) / short));
  if (wide * high <= LARGEST) return [wide, high];
  throw new Error(`a picture of ${width}x${height} would have ${wide}x${high} pixels before its middle is cut out`);
}

/** Width and height with the longest edge as it is told, the other even. */
function rescaled({ width, height }, longest) {
  const aspect = width / height;
  const even = (length) => Math.max(length + (length % 2), 1);
  const [wide, high] = aspect >= 1 ? [longest, even(Math.trunc(longest / aspect))]
    : [even(Math.trunc(longest * aspect)), longest];
  const again = wide / high;
  if (wide >= high && wide > MOST) return [MOST, Math.max(Math.trunc(MOST / again), 1)];
  return high > wide && high > MOST ? [Math.max(Math.trunc(MOST * again), 1), MOST] : [wide, high];
}

/** Width and height as multiples of a tile, stretched where they are none. */
function multiple({ width, height }, tile) {
  const whole = (length) => Math.ceil(length / tile) * tile;
  const aspect = width / height;
  if (width >= height) return [whole(width), whole(Math.trunc(whole(width) / aspect))];
  return [whole(Math.trunc(whole(height) * aspect)), whole(height)];
}

/** Idefics3's and SmolVLM's tiles, row by row, and all of the picture behind them; a small picture is one view. */
function tiled(picture, config) {
  const tile = config.max_image_size.longest_edge;
  const filter = config.resample ?? 1;
  const { longest_edge: longest } = config.size;
  const first = () => (longest ? rescaled(picture, longest) : size(picture, config.size));
  const sized = config.do_resize === false ? picture : resize(picture, ...first(), filter);
  if (config.do_image_splitting === false) return { pictures: [resize(sized, tile, tile, filter)], rows: 0, cols: 0 };
  const whole = resize(sized, ...multiple(sized, tile), filter);
  const [rows, cols] = [whole.height / tile, whole.width / tile];
  if (rows * cols === 1) return { pictures: [whole], rows: 0, cols: 0 };
  const tiles = Array.from({ length: rows * cols }, (_, i) => (
    crop(whole, (i % cols) * tile, Math.floor(i / cols) * tile, tile, tile)
  ));
  return { pictures: [...tiles, resize(whole, tile, tile, filter)], rows, cols };
}

/** Name of transformers' image processor → how it cuts a picture. */
const CUTTINGS = { CLIP: single, Llava: single, Idefics3: tiled, SmolVLM: tiled };

/** What a bundle's file says of its image processor, and how that cuts. */
function read(config) {
  const told = config.image_processor ?? config;
  const name = String(told.image_processor_type).match(/^(\w+?)ImageProcessor(Fast|Pil)?$/)?.[1];
  if (Object.hasOwn(CUTTINGS, name)) return { told, cutting: CUTTINGS[name] };
  throw new Error(`the views of a ${told.image_processor_type} are not known: ${Object.keys(CUTTINGS).join(', ')} are`);
}

/**
 * The views of a picture, 8 bits a channel.
 * @param {{data: Uint8Array|Uint8ClampedArray, width: number, height: number}} picture RGB or RGBA, row by row:
 *   `ImageData` and transformers.js' `RawImage` are such
 * @param {object} config `processor_config.json`, where that has an `image_processor`, else `preprocessor_config.json`
 * @returns {{pictures: object[], rows: number, cols: number}} RGB pictures like the given one; `rows` and `cols` of
 *   tiles, 0 where it was not cut
 */
export function cut(picture, config) {
  const { told, cutting } = read(config);
  return cutting(opaque(picture), told);
}

/** Of each channel the value of each level, in single precision throughout. */
function values({ rescale_factor: factor = 1 / 255, do_rescale, do_normalize, image_mean: mean, image_std: std }) {
  const f32 = Math.fround;
  return Array.from({ length: CHANNELS }, (_, channel) => Float32Array.from({ length: 256 }, (_, level) => {
    const value = do_rescale === false ? level : f32(level * f32(factor));
    return do_normalize === false ? value : f32(f32(value - f32(mean[channel])) / f32(std[channel]));
  }));
}

/**
 * What the model class is given for a picture. `new Tensor(type, data, dims)` of each makes a tensor, in transformers.js
 * and in onnxruntime-web.
 *
 * Returns `pixel_values` f32 [1, 3, height, width]; of a model with tiles [1, views, 3, side, side], and
 * `pixel_attention_mask` bool [1, views, side, side], `rows` and `cols`, which its prompt names.
 * Parameters are those of `cut`.
 */
export function views(picture, config) {
  const { told, cutting } = read(config);
  const { pictures, rows, cols } = cut(picture, config);
  const [{ width, height }] = pictures;
  const table = values(told);
  const area = width * height;
  const data = new Float32Array(pictures.length * CHANNELS * area);
  let to = 0;
  for (const { data: levels } of pictures) {
    for (const [channel, value] of table.entries()) {
      for (let from = channel; from < levels.length; from += CHANNELS) data[to++] = value[levels[from]];
    }
  }
  const tiles = cutting === tiled;
  const leading = tiles ? [1, pictures.length] : [1];
  const made = { pixel_values: { type: 'float32', data, dims: [...leading, CHANNELS, height, width] } };
  if (!tiles) return made;
  const mask = new Uint8Array(pictures.length * area).fill(1);
  const pixel_attention_mask = { type: 'bool', data: mask, dims: [...leading, height, width] };
  return { ...made, pixel_attention_mask, rows, cols };
}

/**
 * A picture file, upright, in a browser or a worker.
 * @param {Blob} file
 * @returns {Promise<ImageData>}
 */
export async function decode(file) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: 'none' });
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext('2d', { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, width, height);
}
