"use strict";
// Runs before anything is drawn, so that nobody sees the other theme flash.
{
  const KEY = "radmesh.theme";
  const root = document.documentElement;
  const apply = (theme) => {
    if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
  };
  let theme = "auto";
  try {
    const kept = localStorage.getItem(KEY);
    if (kept === "light" || kept === "dark") theme = kept;
  } catch {
    // A browser that keeps nothing has the system's theme.
  }
  apply(theme);
  globalThis.radmeshTheme = {
    get: () => theme,
    set(value) {
      theme = value;
      apply(value);
      try {
        localStorage.setItem(KEY, value);
      } catch {
        // It holds for this page.
      }
    },
  };
}
