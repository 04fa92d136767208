// The pixels stage as vlmexport's processing/square.py has it, value for value: pad to a square (or crop to one), then
// resize by PIL's antialiased bicubic. A browser's own resizing is neither bicubic nor antialiased.

const FRACTION = 22; // bits after the point of PIL's integer weights
const CHANNELS = 3;

/** Keys' cubic with a = -1/2. */
function cubic(x) {
  const t = Math.abs(x);
  if (t < 1) return (1.5 * t - 2.5) * t * t + 1;
  return t < 2 ? ((-0.5 * t + 2.5) * t - 4) * t + 2 : 0;
}

/** Of one target pixel: the first source pixel that it reads, and the weight of each from there on. */
function weights(position, scale, length) {
  const stretch = Math.max(scale, 1); // shrinking, the kernel grows: antialiasing
  const centre = (position + 0.5) * scale;
  const first = Math.max(Math.trunc(centre - 2 * stretch + 0.5), 0);
  const last = Math.min(Math.trunc(centre + 2 * stretch + 0.5), length);
  const values = Array.from({ length: last - first }, (_, i) => cubic((first + i - centre + 0.5) / stretch));
  const sum = values.reduce((total, value) => total + value, 0);
  return { first, values: values.map((value) => Math.trunc((value / sum) * 2 ** FRACTION + (value < 0 ? -0.5 : 0.5))) };
}

/** Rows of `width` pixels become columns of `target`: the picture is resized one way and transposed. */
function squeeze(source, width, height, target) {
  const result = new Uint8ClampedArray(target * height * CHANNELS);
  for (let x = 0; x < target; x++) {
    const { first, values } = weights(x, width / target, width);
    for (let y = 0; y < height; y++) {
      for (let channel = 0; channel < CHANNELS; channel++) {
        let sum = 2 ** (FRACTION - 1);
        let index = (y * width + first) * CHANNELS + channel;
        for (let i = 0; i < values.length; i++, index += CHANNELS) sum += source[index] * values[i];
        result[(x * height + y) * CHANNELS + channel] = sum >> FRACTION;
      }
    }
  }
  return result;
}

/** RGB [height, width, 3] → [targetHeight, targetWidth, 3]. */
export function resize(source, width, height, targetWidth, targetHeight) {
  return squeeze(squeeze(source, width, height, targetWidth), height, targetWidth, targetHeight);
}

/** The part of a picture that the model sees, as PIL would cut it: RGB [side, side, 3]. */
function crop(rgb, width, height, side) {
  const [left, top] = [Math.floor((width - side) / 2), Math.floor((height - side) / 2)];
  const result = new Uint8ClampedArray(side * side * CHANNELS);
  for (let y = 0; y < side; y++) {
    const start = ((top + y) * width + left) * CHANNELS;
    result.set(rgb.subarray(start, start + side * CHANNELS), y * side * CHANNELS);
  }
  return result;
}

/** RGB of a picture, on a square of the mean colour where `square` is set. */
function decoded(bitmap, square, mean) {
  const longest = Math.max(bitmap.width, bitmap.height);
  const [width, height] = square ? [longest, longest] : [bitmap.width, bitmap.height];
  const context = new OffscreenCanvas(width, height).getContext('2d', { alpha: false, willReadFrequently: true });
  context.fillStyle = `rgb(${mean.map((value) => Math.floor(255 * value)).join(' ')})`;
  context.fillRect(0, 0, width, height);
  const [left, top] = [Math.floor((width - bitmap.width) / 2), Math.floor((height - bitmap.height) / 2)];
  context.fillStyle = 'white'; // what is transparent, as in processing/images.py
  context.fillRect(left, top, bitmap.width, bitmap.height);
  context.drawImage(bitmap, left, top);
  const rgba = context.getImageData(0, 0, width, height).data;
  const rgb = new Uint8ClampedArray(width * height * CHANNELS);
  for (let from = 0, to = 0; to < rgb.length; from += 4, to += CHANNELS) {
    rgb[to] = rgba[from];
    rgb[to + 1] = rgba[from + 1];
    rgb[to + 2] = rgba[from + 2];
  }
  return { rgb, width, height };
}

/**
 * A picture file as the square that the model sees.
 * @param {Blob} file
 * @param {object} settings the bundle's preprocessor_config.json
 * @returns {Promise<{rgb: Uint8ClampedArray, side: number}>} [side, side, 3]
 */
export async function square(file, settings) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: 'none' });
  const pads = settings.do_pad;
  const side = (pads ? settings.pad_size : settings.crop_size).width;
  const { rgb, width, height } = decoded(bitmap, pads, settings.image_mean);
  bitmap.close();
  if (pads) return { rgb: resize(rgb, width, height, side, side), side };
  const short = Math.min(width, height);
  const [across, down] = [Math.trunc((side * width) / short), Math.trunc((side * height) / short)];
  return { rgb: crop(resize(rgb, width, height, across, down), across, down, side), side };
}
