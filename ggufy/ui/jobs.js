// Body of gradio's js_on_load for the column of jobs. The server sends pieces (jobs_panel.py): which there are, in
// their order, and the HTML of those that are new. `value` tells it what is shown and what the visitor has opened.
// Pieces are changed in place, so that what has the focus, is selected, scrolled or held stays so.
const column = element.querySelector(".gg-jobs");
const cards = new Map(); // key -> its element
const opened = new Map(); // key -> whether it is open, once the visitor has decided
const following = new Map(); // key of a list of steps -> whether it is scrolled along with the running one
const places = new Map(); // job -> where its slider over sizes stands, once the visitor has moved it
let shown = props.value.shown;
let count = props.value.count;
let held = null; // the job whose slider is being dragged
const ticked = new Set(); // files to compare
let comparing = false; // whether the window is open that compares them
let find = ""; // what is searched for in it

let ended = null; // id of a job -> how it ended, as far as this tab has heard

// How jobs end is spoken, and stands in the title until the visitor looks; else it says how far the running one is.
const spoken = element.querySelector(".gg-spoken");
const tellNews = () => {
  const piece = column.querySelector("[data-news]");
  if (!piece) return;
  const now = JSON.parse(piece.dataset.news);
  const fresh = Object.keys(now).filter((job) => ended && ended[job] !== now[job]);
  ended = now;
  if (fresh.length) spoken.textContent = fresh.map((job) => now[job]).join(". ");
  if (fresh.length && !document.hasFocus()) {
    title = spoken.textContent;
    notify(title);
  }
  document.title = [title || (piece.dataset.percent && `${piece.dataset.percent} %`), "ggufy"].filter(Boolean).join(" · ");
};
// Some browsers let only a service worker notify.
const notify = (text) => {
  if (window.ggufy?.chosen("notify") !== "on" || window.Notification?.permission !== "granted") return;
  try {
    new Notification("ggufy", { body: text }).onclick = () => window.focus();
  } catch (error) {
    console.info(error.message);
  }
};
let title = "";
window.addEventListener("focus", () => {
  title = "";
  tellNews();
});

const parsed = (html) => {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content;
};

// Makes `old` like `fresh`. What is open is settled afterwards, and sections are filled by pieces of their own.
const morph = (old, fresh) => {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) return old.replaceWith(fresh);
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  if (old.dataset.key !== fresh.dataset.key || old.dataset.body !== fresh.dataset.body) return old.replaceWith(fresh);
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  if (!old.dataset.body) morphChildren(old, fresh);
};
const keyOf = ({ nodeName, dataset }) => {
  const key = dataset?.details ?? dataset?.body ?? dataset?.key;
  return key && `${nodeName} ${key}`;
};
// What has a key keeps its element, whatever appears or goes above it.
const morphChildren = (old, fresh) => {
  const kept = new Map([...old.childNodes].filter(keyOf).map((node) => [keyOf(node), node]));
  let next = old.firstChild;
  const passed = () => {
    const node = next;
    next = next.nextSibling;
    kept.delete(keyOf(node));
    return node;
  };
  for (const node of [...fresh.childNodes]) {
    const same = keyOf(node) ? kept.get(keyOf(node)) : next && !keyOf(next) && next;
    if (!same) {
      old.insertBefore(node, next);
      continue;
    }
    while (next !== same) passed().remove();
    morph(passed(), node);
  }
  while (next) passed().remove();
};

const bodyOf = (key) => [...column.querySelectorAll("[data-body]")].find((body) => body.dataset.body === key);
const apply = ({ order, html }) => {
  if (!order) return;
  const keys = new Set(order.map(([key]) => key));
  for (const [key, card] of cards) {
    if (keys.has(key)) continue;
    card.remove();
    cards.delete(key);
  }
  let next = column.firstElementChild;
  let whole = true; // or a piece was left out that is not here: then everything is asked for anew
  for (const [key] of order) {
    const fresh = key in html ? parsed(html[key]) : null;
    if (key.startsWith("card ") || !key.includes(" ")) {
      if (!cards.has(key) && fresh) cards.set(key, column.insertBefore(fresh.firstElementChild, next));
      else if (fresh) morph(cards.get(key), fresh.firstElementChild);
      const card = cards.get(key);
      whole &&= Boolean(card);
      if (card && card !== next) column.insertBefore(card, next);
      else if (card) next = card.nextElementSibling;
    } else {
      const body = bodyOf(key);
      whole &&= Boolean(body && (fresh || body.hasChildNodes()));
      if (body && fresh) morphChildren(body, fresh);
    }
  }
  for (const body of column.querySelectorAll("[data-body]")) if (!keys.has(body.dataset.body)) body.replaceChildren();
  shown = whole ? order.map(([, digest]) => digest).join(" ") : "";
  settle();
  tellNews();
};

const tell = () => {
  const more = comparing ? { compared: [...ticked], find } : {};
  props.value = { shown, opened: Object.fromEntries(opened), count, ...more };
};
const ask = () => {
  tell();
  trigger("look");
};

const panelOf = (job) => [...column.querySelectorAll("[data-sizes]")].find((panel) => panel.dataset.sizes === job);
const chosenRow = (panel) => JSON.parse(panel.dataset.rows)[Number(panel.querySelector("input").value)];
const showSize = (panel) => {
  const slider = panel.querySelector("input");
  if (places.has(panel.dataset.sizes)) slider.value = places.get(panel.dataset.sizes);
  const row = chosenRow(panel);
  for (const output of panel.querySelectorAll("output")) output.textContent = row[output.dataset.figure];
  const dot = panel.querySelector(".gg-curve-dot");
  dot.style.left = `${row.left}%`;
  dot.style.top = `${row.top}%`;
  const spoken = panel.dataset.spoken.replace("{size}", row.text).replace("{bpw}", row.bpw).replace("{kld}", row.kld);
  slider.setAttribute("aria-valuetext", spoken);
};

const within = (step, list) => {
  const [inner, outer] = [step.getBoundingClientRect(), list.getBoundingClientRect()];
  return inner.bottom > outer.top && inner.top < outer.bottom;
};
// A list of steps follows the running one, unless the visitor has scrolled that out of sight.
const follow = (list) => {
  const step = list.querySelector(".gg-step-running");
  if (!step || following.get(list.closest("[data-body]").dataset.body) === false) return;
  const [inner, outer] = [step.getBoundingClientRect(), list.getBoundingClientRect()];
  if (inner.bottom > outer.bottom) list.scrollTop += inner.bottom - outer.bottom;
  else if (inner.top < outer.top) list.scrollTop += inner.top - outer.top;
};

// The ticks of all cards, how many there are, and the window. It is modal: the browser keeps the focus in it, closes it
// at Escape, and gives the focus back.
const settleTicks = () => {
  const bar = column.querySelector("[data-comparing]");
  if (!bar) return;
  const [count, clear] = [bar.querySelector("output"), bar.querySelector("[data-compare=clear]")];
  for (const box of column.querySelectorAll("[data-tick]")) {
    box.checked = ticked.has(box.dataset.tick);
    box.disabled = !box.checked && ticked.size >= Number(count.dataset.most);
  }
  const text = ticked.size ? count.dataset.text.replace("{count}", ticked.size) : "";
  if (count.textContent !== text) count.textContent = text;
  clear.hidden = !ticked.size;
  bar.classList.toggle("gg-sticky", ticked.size > 0);
  const dialog = column.querySelector("dialog");
  if (dialog && comparing && !dialog.open) dialog.showModal();
};
const compare = (what) => {
  if (what === "clear") ticked.clear();
  else if (what === "all") {
    for (const box of column.querySelectorAll(".gg-matches [data-tick]:enabled")) ticked.add(box.dataset.tick);
  } else if (what === "open") comparing = true;
  else return column.querySelector("dialog").close();
  settleTicks();
  ask();
};

const settle = () => {
  settleTicks();
  for (const details of column.querySelectorAll("details[data-details]")) {
    const key = details.dataset.details;
    details.open = opened.has(key) ? opened.get(key) : details.hasAttribute("data-open");
  }
  column.querySelectorAll("[data-sizes]").forEach(showSize);
  column.querySelectorAll(".gg-steps").forEach(follow);
};

const copy = async (button) => {
  const text = button.parentElement.querySelector("code").textContent;
  const { copied, failed } = button.dataset;
  spoken.textContent = await window.ggufy.copy(text).then(() => copied, () => failed);
  button.textContent = spoken.textContent;
};

column.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.dataset.chat) trigger("talk", { file: button.dataset.chat });
  else if (button?.dataset.copied) copy(button);
  else if (button?.dataset.compare) compare(button.dataset.compare);
  else if (button?.dataset.action) {
    if (button.dataset.confirm && !window.confirm(button.dataset.confirm)) return;
    const panel = button.closest("[data-sizes]");
    const size = panel ? String(chosenRow(panel).size) : "";
    const { action, job = "", file = "" } = button.dataset;
    trigger("click", { action, job, size, file });
  } else if (button?.dataset.fold) {
    opened.set(button.dataset.fold, button.getAttribute("aria-expanded") !== "true");
    ask();
  } else if (button?.dataset.more) {
    count += Number(button.dataset.more);
    ask();
  }
  const details = event.target.closest("summary")?.parentElement;
  if (!details) return;
  opened.set(details.dataset.details, !details.open); // a click comes before the change that it makes
  ask();
});
column.addEventListener(
  "scroll",
  ({ target }) => {
    const step = target.querySelector?.(":scope.gg-steps > .gg-step-running");
    if (step) following.set(target.closest("[data-body]").dataset.body, within(step, target));
  },
  true,
);
column.addEventListener("change", ({ target }) => {
  if (!target.dataset.tick) return;
  if (target.checked) ticked.add(target.dataset.tick);
  else ticked.delete(target.dataset.tick);
  settleTicks();
  if (comparing) ask();
});
column.addEventListener(
  "close",
  () => {
    comparing = false;
    find = "";
    ask();
  },
  true,
);
column.addEventListener("input", (event) => {
  if (event.target.dataset.find !== undefined) {
    find = event.target.value;
    ask();
  }
  const panel = event.target.closest("[data-sizes]");
  if (!panel) return;
  places.set(panel.dataset.sizes, event.target.value);
  showSize(panel);
});
// When the part is drawn again the browser forgets that the slider is held: from there on it is moved here.
column.addEventListener("pointerdown", (event) => {
  held = event.target.type === "range" ? (event.target.closest("[data-sizes]")?.dataset.sizes ?? null) : null;
});
for (const end of ["pointerup", "pointercancel"]) window.addEventListener(end, () => (held = null));
window.addEventListener("pointermove", (event) => {
  const panel = held && panelOf(held);
  if (!panel) return;
  const slider = panel.querySelector("input");
  const box = slider.getBoundingClientRect();
  const part = Math.min(1, Math.max(0, (event.clientX - box.left - 8) / (box.width - 16)));
  places.set(held, Math.round(part * slider.max));
  showSize(panel);
});
watch("patch", () => {
  apply(props.patch);
  tell();
});
