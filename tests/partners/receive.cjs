// node-hl7-server receives on a port and prints each message as a line of JSON: PORT CODE…
// The codes answer the first messages, "-" = not at all; those after them get AA.
const { Server } = require('node-hl7-server')

const [port, ...codes] = process.argv.slice(2)
const inbound = new Server({ bindAddress: '127.0.0.1' }).createInbound({ port: Number(port) }, async (req, res) => {
  const code = codes.shift() ?? 'AA'
  console.log(JSON.stringify({ code, message: req.getMessage().toString() }))
  if (code !== '-') await res.sendResponse(code)
})
inbound.on('listen', () => console.log(JSON.stringify({ listen: Number(port) })))
inbound.on('error', (error) => {
  console.error(error.message)
  process.exit(1)
})
