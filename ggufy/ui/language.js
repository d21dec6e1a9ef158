// Runs before gradio: a language that the visitor has chosen counts as the browser's own.
(() => {
  const chosen = document.cookie.match(/(?:^|; )ggufy_language=(\w+)/)?.[1];
  if (!chosen) return;
  const code = chosen === "zh" ? "zh-CN" : chosen; // as gradio calls it
  Object.defineProperty(navigator, "language", { get: () => code });
  Object.defineProperty(navigator, "languages", { get: () => [code] });
})();
