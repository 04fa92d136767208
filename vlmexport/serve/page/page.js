// The page: pictures and questions go to the worker, what it tells is shown.

const element = (id) => document.getElementById(id);
const [form, question, ask, stop] = ['form', 'question', 'ask', 'stop'].map(element);
const [drop, file, shown, grid, turns, anew] = ['drop', 'file', 'shown', 'grid', 'turns', 'anew'].map(element);

const flag = new Int32Array(new (self.SharedArrayBuffer ?? ArrayBuffer)(4)); // what stops an answer, if it is shared
const about = await (await fetch('/about.json')).json();
const worker = new Worker('/worker.js', { type: 'module' });
const state = { ready: false, broken: false, looking: 0, view: '', turn: null, conversation: 0, kept: false };
let pictures = []; // URLs of those that the model has seen, of this conversation
let asked = 0; // how many of them a question was about

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const fixed = (seconds) => (seconds < 1 ? `${Math.round(1000 * seconds)} ms` : `${seconds.toFixed(2)} s`);

/** A new element with its text. */
function make(tag, className, text = '') {
  const made = document.createElement(tag);
  Object.assign(made, { className, textContent: text });
  return made;
}

/** What can be done now, and what is waited for. */
function refresh(message) {
  if (state.broken) return;
  ask.disabled = !state.ready || !pictures.length || state.looking > 0;
  anew.hidden = !turns.children.length && pictures.length < 2;
  anew.disabled = state.turn !== null || state.looking > 0;
  const [off, on] = state.turn ? [ask, stop] : [stop, ask];
  const focused = document.activeElement === off;
  [off.hidden, on.hidden] = [true, false];
  if (focused) on.focus();
  const picture = state.looking ? `Looking at the picture …${state.view}` : pictures.length ? '' : 'Choose a picture to begin.';
  element('status').textContent = message ?? (state.ready ? picture : 'Loading the model …');
}

/** Draw the tiles of the picture that is shown, where it was cut. */
function tiles(rows, cols) {
  const [wide, high] = [shown.naturalWidth, shown.naturalHeight];
  const lines = [];
  for (let row = 1; row < rows; row++) lines.push(`M0 ${(row / rows) * high}H${wide}`);
  for (let col = 1; col < cols; col++) lines.push(`M${(col / cols) * wide} 0V${high}`);
  grid.setAttribute('viewBox', `0 0 ${wide} ${high}`); // lies on the picture as `object-fit: contain` does
  grid.firstElementChild.setAttribute('d', lines.join(''));
  grid.toggleAttribute('hidden', !lines.length);
}

/** Why the conversation takes no other picture; null where it does. */
function refusal() {
  const most = about.max_images;
  if (most === null || pictures.length + state.looking < most) return null;
  return `The model was trained with ${most === 1 ? 'one picture' : `${most} pictures`}: begin a new conversation.`;
}

/** Begin a new conversation. A picture that is kept is the last; another one that is given takes its place. */
function forget(kept) {
  worker.postMessage({ type: 'forget', kept });
  [pictures, asked] = [kept ? pictures.slice(-1) : [], 0];
  state.conversation += 1;
  state.kept = kept;
  turns.replaceChildren();
}

function look(blob) {
  if (!blob) return;
  if (state.kept || (about.max_images === 1 && !turns.children.length)) {
    forget(false); // nothing was said of the other
  } else if (refusal()) {
    refresh(refusal());
    return;
  }
  shown.src = URL.createObjectURL(blob); // not revoked: answers show it beside them
  shown.alt = `The picture: ${blob.name ?? 'an example'}`;
  shown.hidden = false;
  element('invitation').hidden = true;
  drop.classList.add('filled');
  element('seen').textContent = '';
  tiles(0, 0);
  state.looking += 1;
  worker.postMessage({ type: 'look', file: blob, url: shown.src, conversation: state.conversation });
  refresh();
}

function begin(text) {
  const turn = make('article', '');
  const given = make('div', 'given');
  given.append(...pictures.slice(asked).map((src) => Object.assign(make('img', ''), { src, alt: '' })));
  turn.setAttribute('aria-busy', 'true');
  turn.append(given, make('p', 'question', text), make('p', 'answer'));
  turns.append(turn);
  turn.scrollIntoView({ block: 'nearest' });
  state.turn = turn;
  state.kept = false;
  Atomics.store(flag, 0, 0);
  worker.postMessage({ type: 'ask', question: text });
  refresh();
}

function end({ ids, prompt, first, rate }) {
  const { turn } = state;
  const speed = ids.length > 1 ? ` · ${rate.toFixed(1)} tokens/s` : '';
  turn.append(make('p', 'measures', `first token ${fixed(first)}${speed}`));
  const details = make('details', '');
  details.append(make('summary', '', `${ids.length} tokens, after a prompt of ${prompt}`));
  details.append(make('code', 'ids', ids.join(' ')));
  turn.append(details);
  turn.removeAttribute('aria-busy');
  turn.scrollIntoView({ block: 'nearest' });
  state.turn = null;
  asked += turn.querySelectorAll('.given img').length;
  refresh();
}

function fail({ during, reason }) {
  const where = { load: 'The model cannot be loaded', look: 'This picture cannot be read', ask: 'No answer' }[during];
  if (during === 'ask') {
    state.turn.querySelector('.answer').classList.add('wrong');
    state.turn.querySelector('.answer').textContent = `${where}: ${reason}`;
    state.turn.removeAttribute('aria-busy');
    state.turn = null;
  }
  if (during === 'look') [state.looking, state.view] = [state.looking - 1, ''];
  refresh(`${where}: ${reason}`);
  if (during !== 'load') return;
  element('loading').hidden = true;
  state.broken = true;
}

const told = {
  progress({ loaded }) {
    element('progress').value = loaded / about.bytes;
    element('loaded').textContent = `${megabytes(loaded)} of ${megabytes(about.bytes)}`;
  },
  ready({ threads }) {
    state.ready = true;
    element('loading').hidden = true;
    element('facts').textContent += ` · WebAssembly, ${threads} ${threads === 1 ? 'thread' : 'threads'}`;
    refresh();
  },
  looking({ view, count }) {
    state.view = count > 1 ? ` view ${view} of ${count}` : '';
    refresh();
  },
  seen({ url, conversation, seconds, tokens, count, rows, cols }) {
    state.looking -= 1;
    state.view = '';
    if (conversation !== state.conversation) return; // another picture was given meanwhile
    pictures.push(url);
    const which = pictures.length > 1 ? `image ${pictures.length}:` : 'image';
    const views = count > 1 ? `${rows} × ${cols} tiles and all of it, ` : '';
    element('seen').textContent = `${which} ${fixed(seconds)}, ${views}${tokens} visual tokens`;
    if (url === shown.src) tiles(rows, cols);
    refresh();
  },
  piece({ text }) {
    state.turn.querySelector('.answer').textContent = text;
  },
  answered: end,
  failed: fail,
};

worker.onmessage = ({ data }) => told[data.type](data);
worker.onerror = (event) => fail({ during: 'load', reason: event.message ?? 'the worker did not start' });

form.addEventListener('submit', (event) => {
  event.preventDefault();
  if (ask.disabled || state.turn) return;
  begin(question.value.trim());
  if (document.activeElement === question) question.select(); // on a telephone the keyboard stays away
});
anew.addEventListener('click', () => {
  forget(true);
  if (shown.src !== pictures[0]) tiles(0, 0);
  shown.src = pictures[0]; // a later one may have been unreadable
  refresh();
  question.focus();
});
stop.addEventListener('click', () => Atomics.store(flag, 0, 1));
file.addEventListener('change', () => {
  look(file.files[0]);
  file.value = ''; // so that the same file, changed meanwhile, can be chosen again
});
document.addEventListener('paste', (event) => look(event.clipboardData.files[0]));
document.addEventListener('dragover', (event) => {
  event.preventDefault();
  drop.classList.add('over');
});
document.addEventListener('dragleave', () => drop.classList.remove('over'));
document.addEventListener('drop', (event) => {
  event.preventDefault();
  drop.classList.remove('over');
  look(event.dataTransfer.files[0]);
});

for (const [index, path] of about.examples.entries()) {
  const button = make('button', '');
  const image = make('img', '');
  Object.assign(image, { src: path, alt: `Example ${index + 1}` });
  button.type = 'button';
  button.append(image);
  button.addEventListener('click', async () => look(await (await fetch(path)).blob()));
  element('examples').append(button);
  element('examples').hidden = false;
}

const verdict = about.parity === null ? 'parity not checked' : about.parity ? 'parity passed' : 'parity failed';
document.title = element('name').textContent = about.name;
element('facts').textContent = [about.recipe, megabytes(about.bytes), verdict].join(' · ');
worker.postMessage({ type: 'load', flag });
refresh();
