const { run, tiles } = JSON.parse(document.getElementById("page").textContent);
const byId = id => document.getElementById(id);
const form = byId("form");
const storagePrefix = `remote-diffusion-review-${run}`;
const COLUMNS = [
  "run", "rater", "tile", "answer", "realism", "label_answer", "artifacts", "comment",
];
const classInputs = [...byId("classes").querySelectorAll("input")];
let firstKey = "";   // the first of a class's two keys, once it is pressed
let state = { rater: "", at: 0, answers: {} };   // at: index of the tile on the screen
let storageKey = "";   // of this expert's review

// Answers stay in the browser, each expert's by themselves. Where it stores nothing, the first screen
// warns. Another tab may have the same review: only the answer that was given here is written.
function store(tile) {
  try {
    const stored = JSON.parse(localStorage.getItem(storageKey));
    if (stored) {
      const own = tile ? { [tile]: state.answers[tile] } : {};
      state.answers = { ...stored.answers, ...own };
    }
    localStorage.setItem(storageKey, JSON.stringify(state));
    sessionStorage.setItem(storagePrefix, storageKey);   // what this tab continues with
  } catch {
    byId("not-stored").hidden = false;
  }
}

function storedReviews() {
  const reviews = new Map();   // key -> review
  try {
    for (const key of Object.keys(localStorage).sort())
      if (key.startsWith(storagePrefix)) reviews.set(key, JSON.parse(localStorage.getItem(key)));
  } catch {
    byId("not-stored").hidden = false;
  }
  return reviews;
}

window.addEventListener("storage", event => {
  if (!storageKey || event.key !== storageKey || !event.newValue) return;
  const tile = tiles[state.at];
  const before = JSON.stringify(state.answers[tile]);
  state.answers = JSON.parse(event.newValue).answers;
  byId("progress").value = tiles.filter(isRated).length;
  if (JSON.stringify(state.answers[tile]) !== before) fillForm(state.answers[tile] ?? {});
});

// Who rates
function showStart() {
  storageKey = "";
  state = { rater: "", at: 0, answers: {} };
  try {
    sessionStorage.removeItem(storagePrefix);
  } catch {
    byId("not-stored").hidden = false;
  }
  const reviews = [...storedReviews()];
  byId("stored").hidden = reviews.length === 0;
  byId("reviews").replaceChildren(...reviews.map(([key, review]) => {
    const count = tiles.filter(tile => isComplete(review.answers[tile])).length;
    const button = element("button", `Continue as ${review.rater} (${count} of ${tiles.length})`);
    button.className = "button";
    button.addEventListener("click", () => continueReview(key, review));
    return listItem(button);
  }));
  byId("rater").value = "";
  byId("taken").hidden = true;
  showScreen("start");
}

function continueReview(key, review) {
  storageKey = key;
  state = review;
  showTile(state.at);
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function listItem(content) {
  const item = document.createElement("li");
  item.append(content);
  return item;
}

function isComplete(answer) {
  return Boolean(answer?.answer && answer.realism && answer.label_answer);
}

function isRated(tile) {
  return isComplete(state.answers[tile]);
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
  byId("whose").textContent = state.rater;
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
  store(tiles[state.at]);
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
  const button = element("button", at + 1);
  button.className = "button";
  button.setAttribute("aria-label", `tile ${at + 1}`);
  button.addEventListener("click", () => showTile(at));
  return listItem(button);
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
  const rater = state.rater.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-");
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
  const rater = byId("rater").value.trim();
  byId("rater").value = rater;
  if (!rater) return;
  const names = [...storedReviews().values()].map(review => fold(review.rater));
  byId("taken").hidden = !names.includes(fold(rater));
  if (names.includes(fold(rater))) return;
  continueReview(`${storagePrefix}-${rater}`, { rater, at: 0, answers: {} });
});
byId("change").addEventListener("click", showStart);

function ownReview() {
  try {
    const key = sessionStorage.getItem(storagePrefix);
    return [key, JSON.parse(localStorage.getItem(key))];
  } catch {
    byId("not-stored").hidden = false;
    return [null, null];
  }
}
const [ownKey, own] = ownReview();
if (own) continueReview(ownKey, own);
else showStart();
