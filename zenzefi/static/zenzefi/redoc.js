"use strict";

const container = document.getElementById("redoc");
const font = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";

Redoc.init(
  container.dataset.schema,
  {
    // The header would cover anchors otherwise.
    scrollYOffset: 44,
    theme: { typography: { fontFamily: font, headings: { fontFamily: font } }, colors: { primary: { main: "#0f766e" } } },
  },
  container,
);
