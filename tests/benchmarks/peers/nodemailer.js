// nodemailer's smtp-server, accepting and discarding: node nodemailer.js PORT [cert=FILE key=FILE]
const { SMTPServer } = require("smtp-server");
const fs = require("fs");

if (process.argv[2] !== "probe") {
  const options = Object.fromEntries(process.argv.slice(3).map((word) => word.split("=")));
  const secure = "cert" in options;
  const server = new SMTPServer({
    name: "mx.example",
    authOptional: true,
    disabledCommands: secure ? ["AUTH"] : ["AUTH", "STARTTLS"],
    disableReverseLookup: true,
    logger: false,
    ...(secure
      ? { key: fs.readFileSync(options.key), cert: fs.readFileSync(options.cert) }
      : {}),
    onData(stream, session, callback) {
      stream.on("end", callback);
      stream.resume();
    },
  });
  server.on("error", () => {}); // of one client; the generator sees it
  server.listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 4096 });
}
