"use strict";
// Whatever a model or an environment wrote gets into the page as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const bar = document.getElementById("values");
let shade = "logprob";

// Of a token: how strong its colour is, 0 to 1, and which. What is not known is NaN: no colour.
const SHADES = {
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
  const [strength, colour] = SHADES[shade](token.values);
  const percent = Math.round(75 * Math.min(strength, 1));
  token.style.background =
    percent > 0 ? `color-mix(in srgb, var(--${colour}) ${percent}%, transparent)` : "";
}

// A list with a value for each token, one number for all of them, or null.
function at(values, i) {
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
      logprob: at(turn.logprobs, i),
      advantage: at(turn.advantages, i),
      trained: at(turn.trained, i),
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
  if (!Number.isNaN(v.trained)) parts.push(`trained logprob ${v.trained}`);
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
  const whole = turn.continues ? "" : `, after the first ${turn.start} tokens of what came before`;
  return `${turn.new} new tokens${whole}`;
}

function fillRollout(node, rollout) {
  node.append(facts(rollout.metrics));
  rollout.turns.forEach((turn, i) => {
    node.append(make("div", "faint", turnLabel(turn, i)), make("pre", "", turn.text));
    const notes = [`reply, ${turn.tokens.length} tokens`, `reward ${turn.reward}`];
    if (turn.cut) notes.push("cut: it ran out of tokens");
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
    shade = input.value;
    for (const token of document.querySelectorAll(".token")) paint(token);
  });
}
document.addEventListener("mouseover", (event) => {
  const values = event.target.values;
  bar.hidden = !values;
  if (values) bar.textContent = describe(values);
});
