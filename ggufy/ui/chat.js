// Body of gradio's js_on_load for a conversation: it stays at its end while a reply comes, unless the visitor has
// scrolled up, and its buttons copy what was said.
let follow = true;
const settle = () => {
  const turns = element.querySelector(".gg-turns");
  if (!turns) return;
  if (follow) turns.scrollTop = turns.scrollHeight;
  turns.addEventListener("scroll", () => {
    follow = turns.scrollTop + turns.clientHeight > turns.scrollHeight - 40;
  });
};
element.addEventListener("click", (event) => {
  const turn = event.target.closest("[data-copy]")?.closest(".gg-turn");
  if (turn) navigator.clipboard?.writeText(turn.querySelector(".gg-said").textContent);
});
watch("value", settle);
settle();
