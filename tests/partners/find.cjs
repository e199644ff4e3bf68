// dcmjs-dimse asks for studies, series or the worklist, and prints what comes back: PORT KIND KEYS (JSON)
const dimse = require('dcmjs-dimse')
const { Client } = dimse
const { CFindRequest } = dimse.requests

dimse.log.level = 'error'
const [port, kind, keys] = process.argv.slice(2)
const request = CFindRequest[kind](JSON.parse(keys))
const rows = []
let status
request.on('response', (response) => {
  status = response.getStatus()
  if (response.hasDataset()) rows.push(response.getDataset().getElements())
})
const client = new Client()
client.addRequest(request)
client.on('networkError', (error) => {
  console.error(error)
  process.exit(1)
})
client.on('closed', () => {
  // Its own log goes to standard output too.
  console.log('\n' + JSON.stringify({ status, rows }))
})
client.send('127.0.0.1', Number(port), 'DCMJS', 'RADMESH')
