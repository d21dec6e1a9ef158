// Runs before gradio: the language and the theme that the visitor has chosen count as the browser's own. What is
// chosen is a cookie; i18n.py reads the language from it. What the form holds outlives a reload of its tab, such as the
// one after a restart of the server. `ggufy` is what the other scripts share.
(() => {
  const chosen = (what) => document.cookie.match(new RegExp(`(?:^|; )ggufy_${what}=(\\w+)`))?.[1];
  const choose = (what, value) => {
    const reach = location.protocol === "https:" ? "SameSite=None; Secure" : "SameSite=Lax";
    document.cookie = `ggufy_${what}=${value}; path=/; max-age=${value ? 31536000 : 0}; ${reach}`;
    window.dispatchEvent(new Event(`ggufy-${what}`));
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
  const read = () => {
    try {
      return JSON.parse(sessionStorage.getItem("ggufy-form")) ?? {};
    } catch {
      return {};
    }
  };
  const kept = read(); // as it was when the page was loaded: name of the field -> value
  let restored = false;
  const keep = (names, values) => {
    if (!restored) return; // gradio's fields change when they first appear
    try {
      sessionStorage.setItem("ggufy-form", JSON.stringify(Object.fromEntries(names.map((name, i) => [name, values[i]]))));
    } catch {} // a browser may allow no storage
  };
  const restore = (names, values) => {
    restored = true;
    return names.map((name, i) => kept[name] ?? values[i]);
  };
  window.ggufy = { chosen, choose, copy, kept, keep, restore };
  const language = chosen("language");
  if (language) {
    const code = language === "zh" ? "zh-CN" : language; // as gradio calls it
    Object.defineProperty(navigator, "language", { get: () => code });
    Object.defineProperty(navigator, "languages", { get: () => [code] });
  }
  const root = document.documentElement;
  const query = "(prefers-color-scheme: dark)"; // as gradio asks, who listens for changes
  const ask = window.matchMedia.bind(window);
  const system = ask(query);
  const answer = new EventTarget();
  Object.defineProperty(answer, "matches", { get: () => root.dataset.theme === "dark" });
  window.matchMedia = (asked) => (asked === query ? answer : ask(asked));
  const settle = () => {
    root.dataset.theme = chosen("theme") || (system.matches ? "dark" : "light");
    answer.dispatchEvent(new Event("change"));
  };
  system.addEventListener("change", settle);
  window.addEventListener("ggufy-theme", settle);
  settle();
  const style = document.createElement("style"); // gradio's own first one knows only what the system wants
  style.textContent = `
    [data-theme="dark"] { color-scheme: dark; }
    [data-theme="dark"] body { background: var(--bg-dark); color: var(--col-dark); }
    [data-theme="light"] body { background: var(--bg); color: var(--col); }`;
  document.head.append(style);
})();
