// Cuts pictures by the page's module: a request a line, its answer a line. Pixels go by files.
import fs from 'node:fs';
import readline from 'node:readline';
import { pathToFileURL } from 'node:url';

const { cut, views } = await import(pathToFileURL(process.argv[2]).href);
for await (const line of readline.createInterface({ input: process.stdin })) {
  const { picture, width, height, config, values } = JSON.parse(line);
  try {
    const given = { data: new Uint8Array(fs.readFileSync(picture)), width, height };
    const { pictures, rows, cols } = cut(given, config);
    fs.writeFileSync(`${picture}.levels`, Buffer.concat(pictures.map(({ data }) => Buffer.from(data))));
    const made = values ? views(given, config) : {};
    if (values) fs.writeFileSync(`${picture}.values`, Buffer.from(made.pixel_values.data.buffer));
    const told = Object.fromEntries(Object.entries(made).map(([name, { data, ...others }]) => [name, others]));
    console.log(JSON.stringify({ ...told, whole: made.pixel_attention_mask?.data.every(Boolean), rows, cols }));
  } catch (error) {
    console.log(JSON.stringify({ error: error.message }));
  }
}
