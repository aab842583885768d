const { run, tiles } = JSON.parse(document.getElementById("page").textContent);
const byId = id => document.getElementById(id);
const form = byId("form");
const storageKey = `remote-diffusion-review-${run}`;
const COLUMNS = [
  "run", "rater", "tile", "answer", "realism", "label_answer", "artifacts", "comment",
];
const classInputs = [...byId("classes").querySelectorAll("input")];
let firstKey = "";   // the first of a class's two keys, once it is pressed
let state = { rater: "", at: 0, answers: {} };   // at: index of the tile on the screen

// Answers stay in the browser. Where it stores nothing, the first screen warns.
function store() {
  try {
    localStorage.setItem(storageKey, JSON.stringify(state));
  } catch {
    byId("not-stored").hidden = false;
  }
}
try {
  state = JSON.parse(localStorage.getItem(storageKey)) ?? state;
} catch {
  byId("not-stored").hidden = false;
}

function isRated(tile) {
  const answer = state.answers[tile];
  return Boolean(answer?.answer && answer.realism && answer.label_answer);
}

function showScreen(name) {
  for (const screen of ["start", "rate", "end"]) byId(screen).hidden = screen !== name;
}

// One tile
function showTile(at) {
  state.at = at;
  store();
  showScreen("rate");
  const tile = tiles[at];
  byId("position").textContent = `Tile ${at + 1} of ${tiles.length}`;
  byId("tile").src = `tiles/${tile}.jpg`;
  byId("tile").alt = `tile ${at + 1}`;
  fillForm(state.answers[tile] ?? {});
  byId("progress").value = tiles.filter(isRated).length;
  byId("back").disabled = at === 0;
  byId("next").textContent = at + 1 < tiles.length ? "Next" : "Finish";
  byId("position").focus({ preventScroll: true });
  scrollTo(0, 0);
  if (at + 1 < tiles.length) new Image().src = `tiles/${tiles[at + 1]}.jpg`;   // loads the next
}

function fillForm(answer) {
  form.reset();
  for (const input of form.querySelectorAll("input[type=radio]"))
    input.checked = answer[input.name] === input.value;
  for (const input of form.querySelectorAll("input[type=checkbox]"))
    input.checked = Boolean(answer.artifacts?.includes(input.value));
  byId("comment").value = answer.comment ?? "";
  setFirstKey("");
  showClasses();
  showChosen();
}

function showNext() {
  if (state.at + 1 < tiles.length) showTile(state.at + 1);
  else showEnd();
}

// Classes: where there are many, typing a part of a name leaves those that have it.
function fold(text) {
  return text.normalize("NFKD").replace(/\p{Mn}/gu, "").toLowerCase();
}

function showClasses() {
  const wanted = fold(byId("find").value.trim());
  for (const input of classInputs)
    input.parentElement.hidden = !fold(input.value).includes(wanted);
}

function showChosen() {
  classInputs.find(input => input.checked)?.scrollIntoView({ block: "nearest" });
}

function leaveFind() {
  byId("find").value = "";
  byId("find").blur();
  showClasses();
  showChosen();
}

function chooseFound() {
  const wanted = fold(byId("find").value.trim());
  const found = classInputs.filter(input => !input.parentElement.hidden);
  if (!found.length) return;
  // Of "parking" and "park", "park" is that one.
  if (wanted) (found.find(input => fold(input.value) === wanted) ?? found[0]).click();
  leaveFind();
}

function setFirstKey(key) {
  firstKey = key;
  const begun = classInputs.filter(input => key && input.dataset.key.startsWith(key));
  for (const input of classInputs)
    input.parentElement.classList.toggle("begun", begun.includes(input));
  for (const input of begun.reverse()) input.scrollIntoView({ block: "nearest" });
}

form.addEventListener("input", event => {
  if (event.target === byId("find")) {
    showClasses();
    return;
  }
  if (event.target.name === "label_answer") showChosen();
  const given = new FormData(form);
  state.answers[tiles[state.at]] = {
    answer: given.get("answer"),
    realism: given.get("realism"),
    label_answer: given.get("label_answer"),
    artifacts: given.getAll("artifacts"),
    comment: given.get("comment"),
  };
  store();
  byId("progress").value = tiles.filter(isRated).length;
});
form.addEventListener("submit", event => {
  event.preventDefault();
  showNext();
});
byId("back").addEventListener("click", () => showTile(state.at - 1));
byId("to-end").addEventListener("click", showEnd);

// Keys, except in the two fields for text, which Escape leaves.
document.addEventListener("keydown", event => {
  if (byId("rate").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.isComposing) return;   // Enter ends a word of Chinese, not the field
  if (event.target === byId("comment")) {
    if (event.key === "Escape") byId("comment").blur();
    return;
  }
  if (event.target === byId("find")) {
    if (event.key === "Escape") leaveFind();
    else if (event.key === "Enter") chooseFound();
    else return;
    event.preventDefault();
    return;
  }
  const key = event.key.toLowerCase();
  // A digit after the first key is no answer to another question, whether or not a class has it.
  const keys = /^\d$/.test(key) ? firstKey + key : key;
  setFirstKey("");
  const input = form.querySelector(`input[data-key="${CSS.escape(keys)}"]`);
  if (input) input.click();
  else if (classInputs.some(other => other.dataset.key.startsWith(keys))) setFirstKey(keys);
  else if (key === "/") byId("find").focus();
  else if (key === "k") byId("comment").focus();
  else if (key === "enter" && event.target.tagName !== "BUTTON") showNext();
  else if (key === "backspace" && state.at > 0) showTile(state.at - 1);
  else return;
  event.preventDefault();
});

// The end
function showEnd() {
  showScreen("end");
  const unrated = tiles.filter(tile => !isRated(tile));
  if (unrated.length) {
    byId("done").textContent = `${tiles.length - unrated.length} of ${tiles.length} tiles are rated`;
    byId("missing").textContent =
      "A tile counts only with an answer to each of the first three questions. Not rated yet:";
  } else {
    byId("done").textContent = "All tiles are rated. Thank you!";
    byId("missing").textContent =
      "Save your ratings and return the file to the person who sent you this page.";
  }
  byId("unrated").replaceChildren(...unrated.map(jumpButton));
  byId("save").disabled = unrated.length === tiles.length;
  byId("saved").textContent = "";
  byId("done").focus();
}

function jumpButton(tile) {
  const at = tiles.indexOf(tile);
  const button = document.createElement("button");
  button.className = "button";
  button.textContent = at + 1;
  button.setAttribute("aria-label", `tile ${at + 1}`);
  button.addEventListener("click", () => showTile(at));
  const item = document.createElement("li");
  item.append(button);
  return item;
}

function csvCell(text) {
  return /[",;\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csvRow(tile) {
  const answer = state.answers[tile];
  const row = {
    run,
    rater: state.rater,
    tile,
    ...answer,
    artifacts: answer.artifacts.join(";"),
    comment: answer.comment.replace(/\s+/g, " ").trim(),
  };
  return COLUMNS.map(name => csvCell(row[name])).join(",");
}

byId("save").addEventListener("click", () => {
  const rows = tiles.filter(isRated).map(csvRow);
  // Spreadsheets recognize UTF-8 by the byte-order mark.
  const content = "\ufeff" + [COLUMNS.join(","), ...rows].join("\r\n") + "\r\n";
  const rater = state.rater.toLowerCase().replace(/[^a-z0-9]+/g, "-");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: "text/csv" }));
  link.download = `ratings-${run}-${rater}.csv`;
  link.click();
  byId("saved").textContent =
    `Saved ${rows.length} ratings in ${link.download}. Please return the file.`;
});
byId("again").addEventListener("click", () => showTile(state.at));

byId("who").addEventListener("submit", event => {
  event.preventDefault();
  state.rater = byId("rater").value.trim();
  if (state.rater) showTile(state.at);
  else byId("rater").value = "";
});
if (state.rater) showTile(state.at);
