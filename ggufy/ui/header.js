// Body of gradio's js_on_load for the header. What is chosen is a cookie: early.js reads it, and i18n.py the language.
const keep = (what, chosen, seconds = 31536000) => {
  const reach = location.protocol === "https:" ? "SameSite=None; Secure" : "SameSite=Lax";
  document.cookie = `ggufy_${what}=${chosen}; path=/; max-age=${seconds}; ${reach}`;
};
element.addEventListener("click", (event) => {
  const code = event.target.closest("[data-language]")?.dataset.language;
  if (!code) return;
  keep("language", code);
  location.reload();
});
element.addEventListener("change", ({ target }) => {
  keep("theme", target.value, target.value ? undefined : 0); // the system's is none
  window.dispatchEvent(new Event("ggufy-theme"));
});
const settle = () => {
  element.querySelector("select").value = document.cookie.match(/(?:^|; )ggufy_theme=(\w+)/)?.[1] ?? "";
  // In a frame, as on the Hub's page of a Space, signing in needs a window of its own.
  if (window.self !== window.top) element.querySelectorAll("a").forEach((link) => (link.target = "_blank"));
};
watch("value", settle);
settle();
