const { run, tiles } = JSON.parse(document.getElementById("page").textContent);
const by = id => document.getElementById(id), form = by("form"), key = `remote-diffusion-review-${run}`;
const COLUMNS = ["run", "rater", "tile", "answer", "realism", "label_answer", "artifacts", "comment"];
let state = { rater: "", at: 0, answers: {} };

// Answers outlive the tab; where a browser forbids that, the first screen says so.
function keep() {
  try {
    localStorage.setItem(key, JSON.stringify(state));
  } catch {
    by("forgetful").hidden = false;
  }
}
try {
  state = JSON.parse(localStorage.getItem(key)) ?? state;
} catch {
  by("forgetful").hidden = false;
}

const whole = tile => { const a = state.answers[tile]; return Boolean(a?.answer && a.realism && a.label_answer); };
function screen(name) {
  for (const section of ["start", "rate", "end"]) by(section).hidden = section !== name;
}

// One tile
function show(at) {
  state.at = at;
  keep();
  screen("rate");
  const tile = tiles[at], answer = state.answers[tile] ?? {};
  by("place").textContent = `Tile ${at + 1} of ${tiles.length}`;
  by("tile").src = `tiles/${tile}.jpg`;
  by("tile").alt = `tile ${at + 1}`;
  form.reset();
  for (const input of form.querySelectorAll("input"))
    input.checked = input.type === "checkbox" ? Boolean(answer.artifacts?.includes(input.value)) : answer[input.name] === input.value;
  by("comment").value = answer.comment ?? "";
  by("progress").value = tiles.filter(whole).length;
  by("back").disabled = at === 0;
  by("next").textContent = at + 1 < tiles.length ? "Next" : "Finish";
  by("place").focus({ preventScroll: true });
  scrollTo(0, 0);
  if (at + 1 < tiles.length) new Image().src = `tiles/${tiles[at + 1]}.jpg`;
}
form.addEventListener("input", () => {
  const given = new FormData(form);
  state.answers[tiles[state.at]] = {
    answer: given.get("answer"), realism: given.get("realism"), label_answer: given.get("label_answer"),
    artifacts: given.getAll("artifacts"), comment: given.get("comment"),
  };
  keep();
  by("progress").value = tiles.filter(whole).length;
});
const forward = () => state.at + 1 < tiles.length ? show(state.at + 1) : finish();
form.addEventListener("submit", event => { event.preventDefault(); forward(); });
by("back").addEventListener("click", () => show(state.at - 1));
by("to-end").addEventListener("click", finish);

// Keys: not while somebody writes a comment, which Escape leaves.
document.addEventListener("keydown", event => {
  if (by("rate").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === by("comment")) {
    if (event.key === "Escape") by("comment").blur();
    return;
  }
  const input = form.querySelector(`input[data-key="${CSS.escape(event.key.toLowerCase())}"]`);
  if (input) input.click();
  else if (event.key.toLowerCase() === "k") by("comment").focus();
  else if (event.key === "Enter" && event.target.tagName !== "BUTTON") forward();
  else if (event.key === "Backspace" && state.at > 0) show(state.at - 1);
  else return;
  event.preventDefault();
});

// The end
function finish() {
  screen("end");
  const open = tiles.filter(tile => !whole(tile));
  by("done").textContent = open.length ? `${tiles.length - open.length} of ${tiles.length} tiles are rated` : "All tiles are rated. Thank you!";
  by("missing").textContent = open.length ? "Without an answer to each of the first three questions a tile doesn't count. Still open:" : "Save your ratings and return the file to whoever gave you this folder.";
  by("open").replaceChildren(...open.map(tile => {
    const item = document.createElement("li"), button = document.createElement("button");
    button.className = "button";
    button.textContent = tiles.indexOf(tile) + 1;
    button.setAttribute("aria-label", `tile ${tiles.indexOf(tile) + 1}`);
    button.addEventListener("click", () => show(tiles.indexOf(tile)));
    item.append(button);
    return item;
  }));
  by("save").disabled = open.length === tiles.length;
  by("saved").textContent = "";
  by("done").focus();
}
by("again").addEventListener("click", () => show(state.at));
const quoted = text => /[",;\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
by("save").addEventListener("click", () => {
  const rows = tiles.filter(whole).map(tile => {
    const given = state.answers[tile];
    const row = { run, rater: state.rater, tile, ...given, artifacts: given.artifacts.join(";"), comment: given.comment.replace(/\s+/g, " ").trim() };
    return COLUMNS.map(name => quoted(row[name])).join(",");
  });
  const name = `ratings-${run}-${state.rater.toLowerCase().replace(/[^a-z0-9]+/g, "-")}.csv`, link = document.createElement("a");
  // The byte-order mark tells spreadsheets that this is UTF-8.
  link.href = URL.createObjectURL(new Blob(["\ufeff" + [COLUMNS.join(","), ...rows].join("\r\n") + "\r\n"], { type: "text/csv" }));
  link.download = name;
  link.click();
  by("saved").textContent = `Saved ${name}: ${rows.length} tiles. Please return it.`;
});

by("who").addEventListener("submit", event => {
  event.preventDefault();
  state.rater = by("rater").value.trim();
  if (state.rater) show(state.at);
  else by("rater").value = "";
});
if (state.rater) show(state.at);
