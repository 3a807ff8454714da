"use strict";

// A file of its own, not inline: the page's content security policy allows no inline script.
const container = document.getElementById("swagger-ui");

window.ui = SwaggerUIBundle({
  url: container.dataset.schema,
  domNode: container,
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
  deepLinking: true,
  displayRequestDuration: true,
  filter: true,
  // Swagger's public validator would be asked otherwise.
  validatorUrl: null,
});
