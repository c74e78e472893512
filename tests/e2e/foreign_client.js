// A bot that knows nothing but two addresses: where the AsyncAPI document is, and where the broker is.
//
//   node foreign_client.js <URL of the document> <URL of the broker>
//
// It sets itself up by request and reply, subscribes to `trade.recorded`, publishes a trade, waits for its event and
// looks its trades up. Every body that it sends or gets is held against the document's schemas. It writes what it
// saw as JSON.

const { randomUUID } = require("node:crypto");
const Ajv = require("ajv");
const amqp = require("amqplib");

const PATIENCE_MS = 10_000;

/** What the document says, as far as a client asks. */
class Document {
  static async read(url) {
    return new Document(await (await fetch(url)).json());
  }

  constructor(document) {
    this.root = document;
    this.ajv = new Ajv({ strict: false, validateFormats: false }).addSchema(document, "document");
  }

  resolve(part) {
    while (part?.$ref) {
      part = part.$ref
        .slice("#/".length)
        .split("/")
        .reduce((node, name) => node[name], this.root);
    }
    return part;
  }

  /** Exchange, routing key, message and reply of the operation that has this name. */
  operation(name) {
    const { channel, messages, bindings, reply } = this.root.operations[name];
    const { address, bindings: where } = this.resolve(channel);
    return {
      exchange: where.amqp.exchange.name,
      routingKey: address,
      message: this.resolve(messages[0]),
      deliveryMode: bindings.amqp.deliveryMode,
      reply: reply && this.resolve(reply.messages[0]),
    };
  }

  /** The same value, if its schema admits it. */
  admitted(value, schema) {
    const validate = this.ajv.compile({ $ref: `document${schema.$ref}` });
    if (!validate(value)) {
      throw new Error(`${schema.$ref} does not admit ${JSON.stringify(value)}: ${this.ajv.errorsText(validate.errors)}`);
    }
    return value;
  }
}

function within(promise, what) {
  let timer;
  const tooLate = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} did not come in time`)), PATIENCE_MS);
  });
  return Promise.race([promise, tooLate]).finally(() => clearTimeout(timer));
}

/** Publishes requests with confirms, and tells replies apart by their correlation ids. */
class Client {
  static async open(document, connection) {
    const channel = await connection.createConfirmChannel();
    const client = new Client(document, channel);
    channel.on("return", ({ fields }) => client.returned.push(fields.routingKey));
    await channel.consume("amq.rabbitmq.reply-to", (message) => client.receive(message), { noAck: true });
    return client;
  }

  constructor(document, channel) {
    this.document = document;
    this.channel = channel;
    this.waiting = new Map();
    this.returned = [];
  }

  receive(message) {
    this.waiting.get(message.properties.correlationId)?.(JSON.parse(message.content));
  }

  async publish(name, body, properties = {}) {
    const { exchange, routingKey, message, deliveryMode } = this.document.operation(name);
    this.document.admitted(body, message.payload);
    const known = this.document.resolve(message["x-amqp-properties"]).properties;
    const options = {
      mandatory: true,
      contentType: message.contentType,
      deliveryMode,
      type: message.bindings.amqp.messageType,
      headers: { schema_version: this.document.resolve(message.headers).properties.schema_version.const },
      ...("message_id" in known && { messageId: randomUUID() }),
      ...properties,
    };
    this.channel.publish(exchange, routingKey, Buffer.from(JSON.stringify(body)), options);
    await within(this.channel.waitForConfirms(), `the confirm of ${name}`);
    if (this.returned.length > 0) throw new Error(`${this.returned} found no queue`);
  }

  /** The data of the reply; an error says what the service said. */
  async ask(name, body) {
    const correlationId = randomUUID();
    const arrived = new Promise((resolve) => this.waiting.set(correlationId, resolve));
    await this.publish(name, body, { replyTo: "amq.rabbitmq.reply-to", correlationId });
    const reply = await within(arrived, `the reply to ${name}`);
    this.document.admitted(reply, this.document.operation(name).reply.payload);
    if (!reply.ok) throw new Error(`${name}: ${reply.error.code}: ${reply.error.message}`);
    return reply.data;
  }
}

/** Subscribes a queue of our own, and gives a promise of the first event that comes there. */
async function subscribe(document, channel, name) {
  const { exchange, routingKey, message } = document.operation(name);
  const { durable, exclusive, auto_delete: autoDelete, arguments: args } = document.root["x-subscriber-queue"];
  const { queue } = await channel.assertQueue("foreign.trades", { durable, exclusive, autoDelete, arguments: args });
  await channel.bindQueue(queue, exchange, routingKey);
  let arrive;
  const first = new Promise((resolve) => (arrive = resolve));
  await channel.consume(queue, (delivery) => {
    channel.ack(delivery);
    arrive(JSON.parse(delivery.content));
  });
  return { first: async () => document.admitted(await within(first, `an event ${name}`), message.payload) };
}

async function main(documentUrl, brokerUrl) {
  const document = await Document.read(documentUrl);
  const connection = await amqp.connect(brokerUrl);
  try {
    const client = await Client.open(document, connection);
    const user = await client.ask("add_user", { mail: "node@example.org" });
    const exchange = await client.ask("install_exchange", { name: "node's exchange" });
    const account = await client.ask("add_exchange", {
      uid: user.uid,
      cat_ex_id: exchange.cat_ex_id,
      ex_name: "main",
    });
    const symbol = await client.ask("add_symbol", { symbol: "XRP/ETH", cat_ex_id: exchange.cat_ex_id });
    const bot = await client.ask("add_bot", { uid: user.uid, name: "node's bot" });
    await client.ask("add_exchange_to_bot", { bot_id: bot.bot_id, ex_id: account.ex_id });

    const trades = await subscribe(document, await connection.createChannel(), "trade.recorded");
    await client.publish("record_trade", {
      bot_id: bot.bot_id,
      uid: user.uid,
      ex_id: account.ex_id,
      symbol_id: symbol.symbol_id,
      side: "buy",
      size: "23.00000000",
      price: "0.00141342",
      ex_trade_id: "N-1",
    });
    const event = await trades.first();
    const page = await client.ask("get_trades_paginated", { uid: user.uid });
    console.log(JSON.stringify({ event, page }));
  } finally {
    await connection.close();
  }
}

main(...process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
