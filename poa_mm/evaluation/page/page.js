'use strict';
const card = JSON.parse(document.getElementById('data').textContent);
const $ = (id) => document.getElementById(id);

// --- what there is to compare --------------------------------------------------------------
// Each quantity in the unit that is shown; the first four can be limited.
const cost = (row) => row.costs[state.on];
const QUANTITIES = {
  latency: { title: 'Latency', unit: 'ms', of: (row) => cost(row).median_ms, predicted: true },
  params: { title: 'Parameters', unit: 'M', of: (row) => row.params / 1e6 },
  size: { title: 'File size', unit: 'MB', of: (row) => row.file_bytes / 1e6 },
  memory: { title: 'Memory', unit: 'MB', of: (row) => (cost(row).peak_memory ?? NaN) / 1e6, predicted: true },
  macs: { title: 'GMACs', unit: '', of: (row) => row.macs / 1e9 },
};
const LIMITED = ['latency', 'params', 'size', 'memory'];
const NAMES = { knn: 'k-NN', linear: 'linear' };

const state = { by: card.protocols[0], on: card.conditions[0], x: 'latency', max: {}, mark: null, sort: 'order', down: false };
const score = (row) => row.scores[state.by];
const isPredicted = (row) => cost(row).kind === 'predicted';

function short(number) {
  if (!Number.isFinite(number)) return '–';
  return number >= 100 ? number.toFixed(0) : String(Number(number.toPrecision(3)));
}
const percent = (share) => (100 * share).toFixed(2);
const withUnit = (key, number) => (short(number) + ' ' + QUANTITIES[key].unit).trim();
function shown(key, row) {
  const text = withUnit(key, QUANTITIES[key].of(row));
  return QUANTITIES[key].predicted && isPredicted(row) ? '~' + text : text;
}
// Not known counts as not within a limit.
const fits = (row) => LIMITED.every((key) => state.max[key] === undefined || QUANTITIES[key].of(row) <= state.max[key]);
const better = (a, b) => score(b) - score(a) || cost(a).median_ms - cost(b).median_ms || a.params - b.params;

function best() {
  return card.subnets.filter(fits).sort(better)[0];
}

function nearest() {
  const over = (row) => Math.max(...LIMITED.map((key) => (state.max[key] === undefined ? 0 : QUANTITIES[key].of(row) / state.max[key])));
  return card.subnets.filter((row) => Number.isFinite(over(row))).sort((a, b) => over(a) - over(b))[0];
}

function paretoFront() {
  const of = QUANTITIES[state.x].of;
  const front = [];
  for (const row of card.subnets.filter((row) => Number.isFinite(of(row))).sort((a, b) => of(a) - of(b) || better(a, b))) {
    if (!front.length || score(row) > score(front[front.length - 1])) front.push(row);
  }
  return front;
}

// --- building blocks -----------------------------------------------------------------------
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) key in made ? (made[key] = value) : made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function drawn(parent, name, attributes, text) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return parent.appendChild(made);
}

const widths = [...new Set(card.subnets.map((row) => parseInt(row.subnet)))].sort((a, b) => a - b);
function colour(width) {
  const share = widths.length > 1 ? widths.indexOf(width) / (widths.length - 1) : 1;
  return `color-mix(in oklab, var(--high) ${Math.round(100 * share)}%, var(--low))`;
}

// Of a supernet with patches of several sizes, each size has a shape of its own; the native one is a circle.
const patchOf = (row) => Number((row.subnet.match(/p(\d+)$/) ?? [])[1] ?? 0);
const patches = [...new Set(card.subnets.map(patchOf))].sort((a, b) => a - b);
const SHAPES = [
  (x, y, r) => `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}Z`,
  (x, y, r) => `M${x},${y - 1.2 * r}L${x + 1.2 * r},${y + r}H${x - 1.2 * r}Z`,
  (x, y, r) => `M${x},${y - 1.4 * r}L${x + 1.4 * r},${y}L${x},${y + 1.4 * r}L${x - 1.4 * r},${y}Z`,
];
function drawDot(parent, patch, [cx, cy], r, attributes) {
  if (!patch) return drawn(parent, 'circle', { ...attributes, cx, cy, r });
  const shape = SHAPES[patches.filter((size) => size).indexOf(patch) % SHAPES.length];
  return drawn(parent, 'path', { ...attributes, d: shape(cx, cy, r) });
}

function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n >= rough);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(Number((i * step).toPrecision(8)));
  return found;
}

// --- chart ---------------------------------------------------------------------------------
const MARGIN = { top: 14, right: 18, bottom: 46, left: 58 };
let points = [];

function drawChart(chosen, front) {
  const svg = $('chart');
  const [width, height] = [svg.clientWidth || 820, svg.clientHeight || 430];
  svg.replaceChildren();
  svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
  const quantity = QUANTITIES[state.x];
  const rows = card.subnets.filter((row) => Number.isFinite(quantity.of(row)));
  $('chart-title').textContent = `${NAMES[state.by] ?? state.by} score over ${quantity.title === 'GMACs' ? 'GMACs' : quantity.title.toLowerCase()}`;
  points = [];
  if (!rows.length) {
    drawn(svg, 'text', { x: MARGIN.left, y: 40 }, 'not measured under this condition');
    return;
  }
  const range = (of) => {
    const values = rows.map(of);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const room = (high - low || Math.abs(high) || 1) * 0.06;
    return [low - room, high + room];
  };
  const [x0, x1] = range(quantity.of);
  const [y0, y1] = range((row) => 100 * score(row));
  const x = (value) => MARGIN.left + ((value - x0) / (x1 - x0)) * (width - MARGIN.left - MARGIN.right);
  const y = (value) => height - MARGIN.bottom - ((value - y0) / (y1 - y0)) * (height - MARGIN.top - MARGIN.bottom);
  const bottom = height - MARGIN.bottom;
  const limit = state.max[state.x];
  if (limit !== undefined && limit < x1) {
    const from = Math.max(x(limit), MARGIN.left);
    drawn(svg, 'rect', { class: 'over', x: from, y: MARGIN.top, width: width - MARGIN.right - from, height: bottom - MARGIN.top });
  }
  for (const tick of ticks(x0, x1, Math.max(3, width / 110))) {
    drawn(svg, 'line', { class: 'grid', x1: x(tick), x2: x(tick), y1: MARGIN.top, y2: bottom });
    drawn(svg, 'text', { x: x(tick), y: bottom + 18, 'text-anchor': 'middle' }, tick);
  }
  for (const tick of ticks(y0, y1, 6)) {
    drawn(svg, 'line', { class: 'grid', x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick) });
    drawn(svg, 'text', { x: MARGIN.left - 8, y: y(tick) + 4, 'text-anchor': 'end' }, tick);
  }
  const axis = quantity.unit ? `${quantity.title} (${quantity.unit})` : quantity.title;
  const how = quantity.predicted ? `, ${state.on}` : '';
  drawn(svg, 'text', { class: 'axis-title', x: (MARGIN.left + width - MARGIN.right) / 2, y: height - 6, 'text-anchor': 'middle' }, axis + how);
  const middle = (MARGIN.top + bottom) / 2;
  drawn(svg, 'text', { class: 'axis-title', x: 15, y: middle, 'text-anchor': 'middle', transform: `rotate(-90 15 ${middle})` }, 'Accuracy (%)');

  const at = (row) => [x(quantity.of(row)), y(100 * score(row))];
  // A step: the best score for at most so much.
  const path = front.map((row, i) => (i ? `H${at(row)[0]}V${at(row)[1]}` : `M${at(row)}`)).join('');
  drawn(svg, 'path', { class: 'front', d: `${path}H${width - MARGIN.right}` });
  const size = rows.length > 200 ? 3.5 : rows.length > 60 ? 4.5 : 5.5;
  for (const row of rows) {
    const [cx, cy] = at(row);
    const tint = colour(parseInt(row.subnet));
    const hollow = quantity.predicted && isPredicted(row) ? ' predicted' : '';
    const look = { class: `dot${hollow}${fits(row) ? '' : ' out'}`, style: `fill:${tint};stroke:${tint}` };
    drawDot(svg, patchOf(row), [cx, cy], size, look);
    points.push({ row, cx, cy });
  }
  if (limit !== undefined && limit >= x0 && limit <= x1) {
    drawn(svg, 'line', { class: 'limit', x1: x(limit), x2: x(limit), y1: MARGIN.top, y2: bottom });
  }
  const named = rows.filter((row) => row.aliases.length && row !== chosen);
  for (const row of [...named, ...(chosen && rows.includes(chosen) ? [chosen] : [])]) {
    const [cx, cy] = at(row);
    const flip = cx > width - 150;
    const label = [row.subnet, ...row.aliases].join(' · ');
    if (row === chosen) drawn(svg, 'circle', { class: 'ring', cx, cy, r: size + 4 });
    drawn(svg, 'text', {
      class: row === chosen ? 'name best' : 'name', x: cx + (flip ? -12 : 12), y: cy + (cy < 40 ? 22 : -9), 'text-anchor': flip ? 'end' : 'start',
    }, row === chosen ? label : row.aliases[0]);
  }
  drawn(svg, 'circle', { class: 'ring hovered', id: 'hovered', r: size + 3, visibility: 'hidden' });
}

function hovered(event) {
  const box = $('chart').getBoundingClientRect();
  const [px, py] = [event.clientX - box.left, event.clientY - box.top];
  let found = null;
  for (const point of points) {
    const distance = Math.hypot(point.cx - px, point.cy - py);
    if (distance < 26 && (!found || distance < found.distance)) found = { ...point, distance };
  }
  return found;
}

function showTip(event) {
  const found = hovered(event);
  $('tip').hidden = !found;
  const ring = $('hovered');
  if (ring) ring.setAttribute('visibility', found ? 'visible' : 'hidden');
  if (!found) return;
  ring.setAttribute('cx', found.cx);
  ring.setAttribute('cy', found.cy);
  const { row } = found;
  const list = element('dl');
  const add = (name, text) => list.append(element('dt', {}, name), element('dd', {}, text));
  for (const protocol of card.protocols) add(NAMES[protocol] ?? protocol, percent(row.scores[protocol]) + ' %');
  for (const key of Object.keys(QUANTITIES)) add(QUANTITIES[key].title, shown(key, row));
  if (Number.isFinite(cost(row).p90_ms ?? NaN)) add('Latency, p90', withUnit('latency', cost(row).p90_ms));
  add('Latency and memory', cost(row).kind);
  const tip = $('tip');
  tip.replaceChildren(element('b', {}, [row.subnet, ...row.aliases].join(' · ')), list);
  const right = found.cx + 18 + tip.offsetWidth > $('chart').clientWidth;
  tip.style.left = (right ? found.cx - 18 - tip.offsetWidth : found.cx + 18) + 'px';
  tip.style.top = Math.max(0, Math.min(found.cy - 30, $('chart').clientHeight - tip.offsetHeight)) + 'px';
}

// --- budget and choice ---------------------------------------------------------------------
const STEPS = 400; // of a slider; its right end is no limit
function extent(key) {
  const values = card.subnets.map(QUANTITIES[key].of).filter(Number.isFinite);
  return values.length ? [Math.min(...values), Math.max(...values)] : null;
}

function makeBudgets() {
  for (const key of LIMITED) {
    const { title, unit } = QUANTITIES[key];
    const slider = element('input', { type: 'range', min: 0, max: STEPS, id: `slide-${key}`, 'aria-label': `${title}, slider` });
    const field = element('input', { type: 'number', min: 0, step: 'any', id: `max-${key}`, placeholder: 'any' });
    slider.addEventListener('input', () => {
      const [low, high] = extent(key) ?? [0, 1];
      const value = Number((low + ((high - low) * slider.value) / STEPS).toPrecision(3));
      // Rounded down, the smallest would not fit any more.
      setLimit(key, Number(slider.value) === STEPS ? undefined : Math.max(value, Number(slider.value) ? value : low));
    });
    field.addEventListener('input', () => setLimit(key, field.value === '' ? undefined : Number(field.value), field));
    $('budgets').append(element('div', { className: 'budget' }, element('label', { htmlFor: field.id }, `${title} at most`), slider, field, element('span', {}, unit)));
  }
}

function setLimit(key, value, source) {
  if (value === undefined || Number.isNaN(value)) delete state.max[key];
  else state.max[key] = value;
  state.mark = null;
  render(source);
}

function showBudgets(source) {
  for (const key of LIMITED) {
    const limit = state.max[key];
    const bounds = extent(key);
    const [slider, field] = [$(`slide-${key}`), $(`max-${key}`)];
    slider.disabled = field.disabled = !bounds;
    if (field !== source) field.value = limit === undefined ? '' : Number(limit.toPrecision(5));
    const [low, high] = bounds ?? [0, 1];
    slider.value = limit === undefined ? STEPS : Math.round((STEPS * (limit - low)) / (high - low || 1));
    slider.setAttribute('aria-valuetext', limit === undefined ? 'no limit' : withUnit(key, limit));
  }
}

function showChoice(chosen) {
  const box = $('choice');
  box.dataset.subnet = chosen ? chosen.subnet : '';
  $('take').hidden = !chosen;
  if (!chosen) {
    const row = nearest();
    const over = row ? LIMITED.filter((key) => QUANTITIES[key].of(row) > state.max[key]) : [];
    const text = over.map((key) => `${QUANTITIES[key].title.toLowerCase()} ${shown(key, row)}, ${withUnit(key, QUANTITIES[key].of(row) - state.max[key])} too much`).join('; ');
    box.replaceChildren(element('p', { className: 'big' }, 'Nothing fits'), element('p', {}, row ? `Nearest: ${row.subnet}: ${text}.` : ''));
    return;
  }
  const largest = card.subnets[card.subnets.length - 1];
  const list = element('dl');
  const add = (name, text, against) => list.append(element('dt', {}, name), element('dd', {}, text), element('dd', { className: 'against' }, against));
  const points = 100 * (score(chosen) - score(largest));
  add(NAMES[state.by] ?? state.by, percent(score(chosen)) + ' %', `${points >= 0 ? '+' : '−'}${Math.abs(points).toFixed(2)} points`);
  for (const key of LIMITED) {
    const share = QUANTITIES[key].of(chosen) / QUANTITIES[key].of(largest);
    add(QUANTITIES[key].title, shown(key, chosen), Number.isFinite(share) ? `${(100 * share).toFixed(0)} %` : '');
  }
  const name = [chosen.subnet, ...chosen.aliases].join(' · ');
  const note = state.mark ? (fits(chosen) ? 'Marked by you.' : 'Marked by you; over the budget.') : 'The best score within the budget.';
  box.replaceChildren(element('div', { className: 'big' }, name), list, element('p', { className: 'note' }, `${note} On the right: against the largest, ${largest.subnet}.`));
  if (isPredicted(chosen)) box.append(element('p', { className: 'note' }, '~ is predicted. tools/select_subnet.py --verify measures it.'));
  const quote = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
  $('command').textContent = `python tools/export_subnet.py ${quote(card.checkpoint)} --subnet ${chosen.subnet} --to timm onnx -o exported`;
}

// --- table ---------------------------------------------------------------------------------
const measured = (row, number, unit = '') => (number === null || !Number.isFinite(number) ? '–' : (isPredicted(row) ? '~' : '') + short(number) + unit);
const COLUMNS = {
  order: { title: 'Subnet', of: (row) => card.subnets.indexOf(row) },
  ...Object.fromEntries(card.protocols.map((name) => [name, { title: `${NAMES[name] ?? name} (%)`, of: (row) => row.scores[name], text: (row) => percent(row.scores[name]), down: true }])),
  latency: { title: 'Latency (ms)', of: (row) => cost(row).median_ms, text: (row) => measured(row, cost(row).median_ms) },
  p90: { title: 'p90 (ms)', of: (row) => cost(row).p90_ms ?? Infinity, text: (row) => measured(row, cost(row).p90_ms) },
  speed: { title: 'Images/s', of: (row) => cost(row).images_per_s, text: (row) => measured(row, cost(row).images_per_s), down: true },
  memory: { title: 'Memory (MB)', of: (row) => cost(row).peak_memory ?? Infinity, text: (row) => measured(row, QUANTITIES.memory.of(row)) },
  params: { title: 'Parameters (M)', of: (row) => row.params, text: (row) => short(row.params / 1e6) },
  size: { title: 'File (MB)', of: (row) => row.file_bytes, text: (row) => short(row.file_bytes / 1e6) },
  macs: { title: 'GMACs', of: (row) => row.macs, text: (row) => short(row.macs / 1e9) },
};

function makeHead() {
  for (const [key, column] of Object.entries(COLUMNS)) {
    const button = element('button', { type: 'button' }, column.title);
    button.addEventListener('click', () => {
      state.down = state.sort === key ? !state.down : Boolean(column.down);
      state.sort = key;
      render();
    });
    $('head').append(element('th', { scope: 'col', id: `sort-${key}` }, button));
  }
}

function showTable(chosen, front) {
  const { of } = COLUMNS[state.sort];
  const sign = state.down ? -1 : 1;
  const compare = (a, b) => (of(a) === of(b) ? 0 : sign * (of(a) < of(b) ? -1 : 1));
  for (const key of Object.keys(COLUMNS)) {
    const head = $(`sort-${key}`);
    const sorted = key === state.sort;
    head.ariaSort = sorted ? (state.down ? 'descending' : 'ascending') : 'none';
    head.firstChild.textContent = COLUMNS[key].title + (sorted ? (state.down ? ' ▾' : ' ▴') : '');
  }
  const rows = [...card.subnets].sort(compare).map((row) => {
    const mark = element('button', { type: 'button', title: 'Mark this subnet' }, row.subnet);
    mark.addEventListener('click', () => choose(row));
    const name = element('td', {}, mark, row.aliases.length ? element('span', { className: 'alias' }, ' ' + row.aliases.join(', ')) : '');
    if (front.includes(row)) name.append(' ', element('span', { className: 'front-mark', title: 'On the Pareto front' }, '◆'));
    const cells = Object.values(COLUMNS).slice(1).map((column) => element('td', {}, column.text(row)));
    const made = element('tr', { className: `${fits(row) ? '' : 'out'} ${row === chosen ? 'best' : ''}` }, name, ...cells);
    made.dataset.subnet = row.subnet;
    return made;
  });
  $('rows').replaceChildren(...rows);
}

// --- all together --------------------------------------------------------------------------
function choose(row) {
  state.mark = state.mark === row.subnet ? null : row.subnet;
  render();
}

function render(source) {
  const chosen = card.subnets.find((row) => row.subnet === state.mark) ?? best();
  const front = paretoFront();
  drawChart(chosen, front);
  showBudgets(source);
  showChoice(chosen);
  showTable(chosen, front);
  $('by').value = state.by;
  $('on').value = state.on;
  for (const input of document.querySelectorAll('#axes input')) input.checked = input.value === state.x;
  const hash = new URLSearchParams({ x: state.x, by: state.by, on: state.on });
  for (const [key, limit] of Object.entries(state.max)) hash.set(`max-${key}`, limit);
  if (state.mark) hash.set('mark', state.mark);
  history.replaceState(null, '', '#' + hash);
}

// The address holds what is chosen, so that it can be kept and sent.
function readHash() {
  const hash = new URLSearchParams(location.hash.slice(1));
  if (hash.get('x') in QUANTITIES) state.x = hash.get('x');
  if (card.protocols.includes(hash.get('by'))) state.by = hash.get('by');
  if (card.conditions.includes(hash.get('on'))) state.on = hash.get('on');
  state.max = {};
  for (const key of LIMITED) {
    const limit = hash.get(`max-${key}`);
    if (limit && Number.isFinite(Number(limit))) state.max[key] = Number(limit);
  }
  state.mark = card.subnets.some((row) => row.subnet === hash.get('mark')) ? hash.get('mark') : null;
}

function start() {
  $('source').textContent = `${card.checkpoint} · ${card.subnets.length} subnets · ${Object.values(card.machine)[0]}, ${card.threads} thread${card.threads > 1 ? 's' : ''}`;
  for (const name of card.protocols) $('by').append(element('option', { value: name }, NAMES[name] ?? name));
  for (const name of card.conditions) $('on').append(element('option', { value: name }, name));
  for (const id of ['by', 'on']) $(id).addEventListener('change', () => { state[id] = $(id).value; render(); });
  for (const [key, { title }] of Object.entries(QUANTITIES)) {
    const input = element('input', { type: 'radio', name: 'x', value: key });
    input.addEventListener('change', () => { state.x = key; render(); });
    $('axes').append(element('label', {}, input, element('span', {}, title)));
  }
  for (const width of widths) {
    const swatch = element('i', { className: 'ramp', style: `background:${colour(width)}`, title: `width ${width}` });
    $('legend').append(swatch);
  }
  const ramp = element('li', {}, `width ${widths[0]}`, ...$('legend').childNodes, element('span', { style: 'margin-left:4px' }, widths.length > 1 ? `to ${widths[widths.length - 1]}` : ''));
  const item = (mark, text) => element('li', {}, element('i', { className: mark }), text);
  const shapes = patches.length > 1 ? patches.map((patch) => {
    const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
    for (const [key, value] of Object.entries({ width: 14, height: 14, 'aria-hidden': true })) svg.setAttribute(key, value);
    drawDot(svg, patch, [7, 7], 4.5, { fill: 'currentColor' });
    return element('li', {}, svg, patch ? `patch size ${patch}` : 'native patch size');
  }) : [];
  $('legend').replaceChildren(ramp, ...shapes, item('full', 'measured'), item('hollow', 'predicted'), item('step', 'Pareto front'));
  makeBudgets();
  makeHead();
  $('clear').addEventListener('click', () => { state.max = {}; state.mark = null; render(); });
  $('copy').addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText($('command').textContent);
      $('copy').textContent = 'Copied';
    } catch { // a browser that lets no page write there: select it instead
      getSelection().selectAllChildren($('command'));
    }
    setTimeout(() => { $('copy').textContent = 'Copy'; }, 1500);
  });
  $('chart').addEventListener('pointermove', showTip);
  $('chart').addEventListener('pointerleave', () => { $('tip').hidden = true; $('hovered')?.setAttribute('visibility', 'hidden'); });
  $('chart').addEventListener('click', (event) => { const found = hovered(event); if (found) choose(found.row); });
  window.addEventListener('hashchange', () => { readHash(); render(); });
  window.addEventListener('resize', () => render());
  readHash();
  render();
}
start();
