import { Refusal, classify } from "./triton.js";

const MAX_MIB = 16; // the gateway's limit on a request
const MAX_BYTES = MAX_MIB * 2 ** 20 - 2 ** 16; // room for the request's header
const AT_ONCE = 4;
const TIMEOUT_MS = 60_000;
const TRIES = 4;
const KEY = "alexnet-triton-key";

const byId = (id) => document.getElementById(id);
const percent = new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
const waiting = [];
let running = 0;

// ---- the key

function showKey() {
  const isSet = sessionStorage.getItem(KEY) !== null;
  byId("key-form").hidden = isSet;
  byId("key-set").hidden = !isSet;
}

function forgetKey() {
  sessionStorage.removeItem(KEY);
  showKey();
  byId("key").focus();
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, byId("key").value.trim());
  byId("key").value = "";
  showKey();
  byId("choose").focus();
});
byId("forget").addEventListener("click", forgetKey);

// ---- pictures in

function addPictures(files) {
  const cards = [...files].map(newCard);
  byId("gallery").prepend(...cards.map((card) => card.element));
  enqueue(...cards);
}

for (const [button, input] of [["choose", "files"], ["take", "camera"]]) {
  byId(button).addEventListener("click", () => byId(input).click());
  byId(input).addEventListener("change", () => {
    addPictures(byId(input).files);
    byId(input).value = "";
  });
}

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) byId("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  addPictures(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => addPictures(event.clipboardData.files));

// ---- requests, a few at once

function enqueue(...cards) {
  waiting.push(...cards);
  while (running < AT_ONCE && waiting.length) {
    running += 1;
    classifyCard(waiting.shift()).finally(() => {
      running -= 1;
      enqueue();
    });
  }
}

async function classifyCard(card) {
  show(card, "busy");
  try {
    const start = performance.now();
    const answer = await classifyWithRetries(card.file);
    showAnswer(card, answer, performance.now() - start);
  } catch (error) {
    showError(card, explain(error, card.file), error);
  }
}

async function classifyWithRetries(file) {
  const key = sessionStorage.getItem(KEY);
  if (key === null) throw new Refusal("", 401);
  if (file.size > MAX_BYTES) throw new Refusal("", 413);
  for (let tries = 1; ; tries += 1) {
    try {
      return await classify(file, key, { signal: AbortSignal.timeout(TIMEOUT_MS) });
    } catch (error) {
      if (tries === TRIES || !error.retryAfterS) throw error;
      await new Promise((resolve) => setTimeout(resolve, error.retryAfterS * 1000 * (1 + Math.random())));
    }
  }
}

function explain(error, file) {
  const mib = (file.size / 2 ** 20).toFixed(1);
  switch (error.status) {
    case 0: return `${sentence(error.message)} Is it running? Try again in a moment.`;
    case 401: return "No valid API key. Give one above, then try again.";
    case 413: return `This file has ${mib} MiB; at most ${MAX_MIB} are taken. Send a smaller picture.`;
    case 429: return "Too many pictures in too short a time. Try again in a moment.";
    case 502: case 503: case 504: return "The server does not answer at the moment. Try again in a moment.";
    default: return sentence(error.message || "the server refused this file");
  }
}

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}.`;

// ---- the gallery

function newCard(file) {
  const element = byId("card").content.cloneNode(true).firstElementChild;
  const card = { file, element, part: (selector) => element.querySelector(selector) };
  card.part("h2").textContent = file.name;
  card.part(".again").addEventListener("click", () => enqueue(card));
  showPicture(card);
  return card;
}

function showPicture(card) {
  const image = card.part("img");
  const address = URL.createObjectURL(card.file);
  image.addEventListener("load", () => {
    image.hidden = false;
    URL.revokeObjectURL(address);
  });
  image.addEventListener("error", () => URL.revokeObjectURL(address));
  image.src = address;
}

function show(card, state) {
  card.element.setAttribute("aria-busy", String(state === "busy"));
  card.part(".busy").hidden = state !== "busy";
  card.part("ol").hidden = card.part(".time").hidden = state !== "answer";
  card.part(".error").hidden = card.part(".again").hidden = state !== "error";
}

function showAnswer(card, { version, top }, ms) {
  card.part("img").alt = `${card.file.name}, probably ${top[0].label}`;
  card.part("ol").replaceChildren(...top.map(row));
  card.part(".time").textContent = `${Math.round(ms)} ms, model version ${version}`;
  show(card, "answer");
  announce(`${card.file.name}: ${top[0].label}, ${percent.format(top[0].probability)}`);
}

function row({ label, probability }) {
  const item = document.createElement("li");
  const bar = item.appendChild(document.createElement("span"));
  bar.className = "bar";
  bar.style.width = `${100 * probability}%`;
  item.appendChild(document.createElement("span")).textContent = label;
  const number = item.appendChild(document.createElement("span"));
  number.className = "percent";
  number.textContent = percent.format(probability);
  return item;
}

function showError(card, text, error) {
  card.part(".error").textContent = text;
  show(card, "error");
  // A picture that was refused for itself would be refused again.
  card.part(".again").hidden = error.status >= 400 && ![401, 408, 429, 502, 503, 504].includes(error.status);
  if (error.status === 401) forgetKey();
  announce(`${card.file.name}: ${text}`);
}

function announce(text) {
  byId("status").textContent = text;
}

byId("limit").textContent = `${MAX_MIB} MiB`;
showKey();
