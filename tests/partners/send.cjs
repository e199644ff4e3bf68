// node-hl7-client sends the messages of files and prints what comes back: PORT FILE…
const fs = require('fs')
const { Client, Message } = require('node-hl7-client')

const [port, ...files] = process.argv.slice(2)
const waiting = []
const connection = new Client({ host: '127.0.0.1' }).createConnection({ port: Number(port) }, (response) => {
  waiting.shift()(response.getMessage().toString())
})

connection.once('connect', async () => {
  const answers = []
  for (const file of files) {
    const answer = new Promise((resolve) => waiting.push(resolve))
    await connection.sendMessage(new Message({ text: fs.readFileSync(file, 'utf8') }))
    answers.push(await answer)
  }
  console.log(JSON.stringify(answers))
  await connection.close()
  process.exit(0)
})
