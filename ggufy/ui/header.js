// Body of gradio's js_on_load for the header: what a visitor chooses is kept by early.js.
const { chosen, choose } = window.ggufy;
const find = (what) => element.querySelector(what);
// In a frame, as on the Hub's page of a Space, signing in needs a window of its own, and browsers allow no notification.
const framed = window.self !== window.top;
const told = () => chosen("notify") === "on" && window.Notification?.permission === "granted";
const settle = () => {
  find("select").value = chosen("theme") ?? "";
  find("[data-notify]").hidden = framed || !window.isSecureContext || !window.Notification;
  find("[data-notify]").setAttribute("aria-pressed", String(told()));
  if (framed) element.querySelectorAll("a").forEach((link) => (link.target = "_blank"));
};
const notify = async (button) => {
  const wanted = !told() && (await Notification.requestPermission());
  if (wanted === "denied") button.textContent = button.dataset.denied;
  choose("notify", wanted === "granted" ? "on" : "");
  settle();
};
element.addEventListener("click", ({ target }) => {
  const { language, notify: asked } = target.closest("button")?.dataset ?? {};
  if (language) {
    choose("language", language);
    location.reload();
  } else if (asked !== undefined) notify(target);
});
element.addEventListener("change", ({ target }) => choose("theme", target.value));
watch("value", settle);
settle();
