// Reads an AsyncAPI document from standard input and writes what is wrong with it, one complaint a line: what the
// public parser says, and examples that their own schemas do not admit.

const { readFileSync } = require("node:fs");
const Ajv = require("ajv");
const { Parser } = require("@asyncapi/parser");

const ERROR = 0;

async function specification(text) {
  const diagnostics = await new Parser().validate(text);
  return diagnostics
    .filter(({ severity }) => severity === ERROR)
    .map(({ path, message }) => `${path.join("/")}: ${message}`);
}

function examples(document) {
  const ajv = new Ajv({ strict: false, validateFormats: false }).addSchema(document, "document");
  return Object.values(document.components.messages).flatMap((message) =>
    (message.examples ?? []).flatMap(({ payload }, index) => {
      const validate = ajv.compile({ $ref: `document${message.payload.$ref}` });
      return validate(payload) ? [] : [`example ${index} of ${message.name}: ${ajv.errorsText(validate.errors)}`];
    }),
  );
}

async function main() {
  const text = readFileSync(0, "utf8");
  const complaints = await specification(text);
  if (complaints.length === 0) complaints.push(...examples(JSON.parse(text)));
  complaints.forEach((complaint) => console.log(complaint));
}

main();
