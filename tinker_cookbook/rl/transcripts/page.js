"use strict";
// Text of models and environments is inserted as text nodes only, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const bar = document.getElementById("values");
let mode = "logprob";

// For each mode: a token's colour strength, 0 to 1, and its colour. Unknown values are NaN: no
// colour. The keys are those of COLOUR_MODES in page.py.
const COLOUR_MODES = {
  logprob: (v) => [1 - Math.exp(v.logprob), "surprise"],
  advantage: (v) => [
    Math.abs(v.advantage) / data.strongest.advantage,
    v.advantage < 0 ? "worse" : "better",
  ],
  gap: (v) => [Math.abs(v.logprob - v.trained) / data.strongest.gap, "surprise"],
};

function make(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

function paint(token) {
  const [strength, colour] = COLOUR_MODES[mode](token.values);
  const percent = Math.round(75 * Math.min(strength, 1));
  token.style.background =
    percent > 0 ? `color-mix(in srgb, var(--${colour}) ${percent}%, transparent)` : "";
}

// The value of token i in a list with one value per token, one number for all tokens, or null.
function valueAt(values, i) {
  const value = Array.isArray(values) ? values[i] : values;
  return value === null ? NaN : Number(value);
}

function tokens(turn) {
  const block = make("pre", turn.trainable ? "reply" : "reply untrained");
  turn.tokens.forEach((entry, i) => {
    const [id, text] = data.vocabulary[entry];
    const kind = text === "" ? "token part" : text.includes("\n") ? "token line" : "token";
    const token = make("span", kind, text);
    token.values = {
      id,
      text,
      logprob: valueAt(turn.logprobs, i),
      advantage: valueAt(turn.advantages, i),
      trained: valueAt(turn.trained, i),
    };
    paint(token);
    block.append(token);
  });
  return block;
}

function describe(v) {
  const parts = [JSON.stringify(v.text), `token ${v.id}`];
  if (!Number.isNaN(v.logprob)) {
    parts.push(`logprob ${v.logprob} (p = ${Math.exp(v.logprob).toPrecision(3)})`);
  }
  if (!Number.isNaN(v.advantage)) parts.push(`advantage ${v.advantage}`);
  if (!Number.isNaN(v.trained)) parts.push(`training logprob ${v.trained}`);
  return parts.join(" · ");
}

function facts(entries) {
  const table = make("table", "facts");
  for (const [name, value] of Object.entries(entries)) {
    table.append(make("tr", "", make("th", "", name), make("td", "", String(value))));
  }
  return table;
}

function turnLabel(turn, i) {
  if (i === 0) return `prompt, ${turn.new} tokens`;
  const branch = turn.continues ? "" : `, after ${turn.start} tokens shared with the previous turn`;
  return `${turn.new} new tokens${branch}`;
}

function fillRollout(node, rollout) {
  node.append(facts(rollout.metrics));
  rollout.turns.forEach((turn, i) => {
    node.append(make("div", "faint", turnLabel(turn, i)), make("pre", "", turn.text));
    const notes = [`reply, ${turn.tokens.length} tokens`, `reward ${turn.reward}`];
    if (turn.cut) notes.push("truncated at the token limit");
    if (!turn.trainable) notes.push("not trained");
    node.append(make("div", "faint", notes.join(" · ")), tokens(turn));
    node.append(facts(turn.metrics), facts(turn.logs));
  });
  if (rollout.final_text) {
    node.append(make("div", "faint", "after the last reply"), make("pre", "", rollout.final_text));
  }
}

function whenFirstOpened(node, fill) {
  let filled = false;
  node.addEventListener("toggle", () => {
    if (node.open && !filled) {
      filled = true;
      fill();
    }
  });
}

function rolloutNode(rollout) {
  const sampled = rollout.turns.reduce((sum, turn) => sum + turn.tokens.length, 0);
  const notes = [
    `rollout ${rollout.index}`,
    `reward ${rollout.reward}` + (rollout.final_reward ? ` (group ${rollout.final_reward})` : ""),
    `turns ${rollout.turns.length}`,
    `sampled tokens ${sampled}`,
  ];
  if (rollout.stop_reason !== "done") notes.push(`stopped: ${rollout.stop_reason}`);
  const node = make("details", "rollout", make("summary", "", notes.join(" · ")));
  whenFirstOpened(node, () => fillRollout(node, rollout));
  return node;
}

for (const node of document.querySelectorAll("details[data-group]")) {
  const rollouts = data.groups[node.dataset.group];
  whenFirstOpened(node, () => node.append(...rollouts.map(rolloutNode)));
}
for (const input of document.querySelectorAll("input[name=shade]")) {
  input.addEventListener("change", () => {
    mode = input.value;
    for (const token of document.querySelectorAll(".token")) paint(token);
  });
}
document.addEventListener("mouseover", (event) => {
  const values = event.target.values;
  bar.hidden = !values;
  if (values) bar.textContent = describe(values);
});
