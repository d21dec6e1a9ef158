// Body of gradio's js_on_load for the header: the other language is a cookie, and the page is loaded again.
element.addEventListener("click", (event) => {
  const code = event.target.closest("[data-language]")?.dataset.language;
  if (!code) return;
  const reach = location.protocol === "https:" ? "; SameSite=None; Secure" : "; SameSite=Lax";
  document.cookie = `ggufy_language=${code}; path=/; max-age=31536000${reach}`;
  location.reload();
});
const settle = () => {
  // In a frame, as on the Hub's page of a Space, signing in needs a window of its own.
  if (window.self !== window.top) element.querySelectorAll("a").forEach((link) => (link.target = "_blank"));
};
watch("value", settle);
settle();
