// Runs before gradio: a language that the visitor has chosen counts as the browser's own.
(() => {
  const chosen = document.cookie.match(/(?:^|; )ggufy_language=(\w+)/)?.[1];
  if (!chosen) return;
  Object.defineProperty(navigator, "language", { get: () => chosen });
  Object.defineProperty(navigator, "languages", { get: () => [chosen] });
})();
