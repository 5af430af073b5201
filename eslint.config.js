import js from "@eslint/js";
import globals from "globals";

export default [
  { ignores: [".venv*/", ".ci/work/", "shared/", "site/", "build/", "dist/"] },
  js.configs.recommended,
  { rules: { "no-control-regex": "off" } }, // they are what is looked for
  { languageOptions: { globals: globals.browser } },
  { files: ["tests/javascript/**", "eslint.config.js"], languageOptions: { globals: globals.nodeBuiltin } },
];
