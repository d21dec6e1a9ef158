// Body of gradio's js_on_load for a conversation: it stays at its end while a reply comes, unless the visitor has
// scrolled up, its buttons copy what was said, and a thought that was opened stays open while more of it comes.
let follow = true;
const opened = new Set(); // numbers of the turns whose thoughts are
const settle = () => {
  const turns = element.querySelector(".gg-turns");
  if (!turns) return;
  [...turns.children].forEach((turn, number) => {
    const thought = turn.querySelector("details");
    if (!thought) opened.delete(number);
    else thought.open = opened.has(number);
    thought?.addEventListener("toggle", () => opened[thought.open ? "add" : "delete"](number));
  });
  if (follow) turns.scrollTop = turns.scrollHeight;
  turns.addEventListener("scroll", () => {
    follow = turns.scrollTop + turns.clientHeight > turns.scrollHeight - 40;
  });
};
// Browsers have a clipboard for pages of https and localhost only; elsewhere there is the old way.
const copy = async (text) => {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = document.createElement("textarea");
  field.value = text;
  field.style.cssText = "position: fixed; opacity: 0";
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  if (!done) throw new Error("not allowed");
};
element.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const { copy: label, copied, failed } = button.dataset;
  const text = button.closest(".gg-turn").querySelector(".gg-said").textContent;
  button.textContent = await copy(text).then(() => copied, () => failed);
  button.focus();
  setTimeout(() => (button.textContent = label), 2000);
});
watch("value", settle);
settle();
