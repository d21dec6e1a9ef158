// Body of gradio's js_on_load for a conversation. `log` has its turns; only those that have changed are drawn, so that
// what is selected, opened or being edited stays. It stays at its end while a reply comes, unless the visitor has
// scrolled up. Its buttons copy and export in the browser; an edit and another reply are told the server.
const box = element.querySelector(".gg-log-of-chat");
const [head, turns, note] = box.children;
const drawn = []; // HTML of each turn
let follow = true;

const button = (text, does) => {
  const made = document.createElement("button");
  Object.assign(made, { type: "button", textContent: text, className: "gg-button" });
  made.dataset.does = does;
  return made;
};
const draw = () => {
  const { log } = props;
  if (!log) return;
  head.firstElementChild.textContent = log.title;
  head.lastElementChild.textContent = log.labels.export;
  turns.setAttribute("aria-label", log.labels.log);
  note.textContent = log.note;
  box.classList.toggle("gg-coming", log.coming);
  log.turns.forEach(({ html }, number) => {
    if (drawn[number] === html) return;
    drawn[number] = html;
    const template = document.createElement("template");
    template.innerHTML = html;
    const fresh = template.content.firstElementChild;
    const old = turns.children[number];
    const thought = fresh.querySelector("details");
    if (thought) thought.open = old?.querySelector("details")?.open ?? false;
    if (old) old.replaceWith(fresh);
    else turns.append(fresh);
  });
  drawn.length = log.turns.length;
  while (turns.children.length > drawn.length) turns.lastElementChild.remove();
  if (follow) turns.scrollTop = turns.scrollHeight;
};
turns.addEventListener("scroll", () => {
  follow = turns.scrollTop + turns.clientHeight > turns.scrollHeight - 40;
});

const download = () => {
  const { title, labels, turns: said } = props.log;
  const parts = said.map(({ role, text }) => `## ${role === "user" ? labels.user : labels.model}\n\n${text}\n`);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([`# ${title}\n\n${parts.join("\n")}`], { type: "text/markdown" }));
  link.download = `${title || "chat"}.md`;
  link.click();
  URL.revokeObjectURL(link.href);
};

// One's own message is edited where it stands. Enter sends, with Shift it begins a line, as in the box below.
const edit = (turn, text) => {
  const field = document.createElement("textarea");
  const form = document.createElement("div");
  form.className = "gg-edit";
  field.value = text;
  field.setAttribute("aria-label", props.log.labels.user);
  form.append(field, button(props.log.labels.send, "send"), button(props.log.labels.cancel, "cancel"));
  turn.append(form);
  turn.classList.add("gg-editing");
  field.focus();
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.querySelector("[data-does=send]").click();
    } else if (event.key === "Escape") form.querySelector("[data-does=cancel]").click();
  });
};
const actions = {
  export: download,
  edit,
  async copy(turn, text, pressed) {
    const { copy: label, copied, copy_failed: failed } = props.log.labels;
    pressed.textContent = await window.ggufy.copy(text).then(() => copied, () => failed);
    pressed.focus();
    setTimeout(() => (pressed.textContent = label), 2000);
  },
  again: (turn, text, pressed, place) => trigger("again", { side: props.log.side, turn: place }),
  send(turn, text, pressed, place) {
    const message = turn.querySelector("textarea").value;
    if (!message.trim()) return;
    actions.cancel(turn);
    trigger("edit", { side: props.log.side, turn: place, message });
  },
  cancel(turn) {
    turn.querySelector(".gg-edit").remove();
    turn.classList.remove("gg-editing");
    turn.querySelector("[data-does=edit]").focus();
  },
};
box.addEventListener("click", (event) => {
  const pressed = event.target.closest("[data-does]");
  if (!pressed) return;
  const turn = pressed.closest(".gg-turn");
  const place = [...turns.children].indexOf(turn);
  follow ||= ["again", "send"].includes(pressed.dataset.does);
  actions[pressed.dataset.does](turn, props.log.turns[place]?.text, pressed, place);
});
watch("log", draw);
draw();
