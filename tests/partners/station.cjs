// dcmjs-dimse as a station: PORT echo | store FILE | move STUDY | get STUDY FOLDER | mpps STUDY | listen FOLDER
// Prints what came of it as a line of JSON.
const path = require('path')
const dimse = require('dcmjs-dimse')
const { Client, Dataset, Scp, Server } = dimse
const { CEchoRequest, CGetRequest, CMoveRequest, CStoreRequest, NCreateRequest, NSetRequest } = dimse.requests
const { CEchoResponse, CStoreResponse } = dimse.responses
const { PresentationContextResult, SopClass, Status, TransferSyntax } = dimse.constants

dimse.log.level = 'error'
const [port, operation, value, folder] = process.argv.slice(2)

function keep(request, into) {
  const dataset = request.getDataset()
  const file = path.join(into, `${dataset.getElements().SOPInstanceUID}.dcm`)
  dataset.toFile(file)
  const response = CStoreResponse.fromRequest(request)
  response.setStatus(Status.Success)
  return response
}

class Station extends Scp {
  associationRequested(association) {
    for (const { id } of association.getPresentationContexts()) {
      association.getPresentationContext(id).setResult(PresentationContextResult.Accept, TransferSyntax.ImplicitVRLittleEndian)
    }
    this.sendAssociationAccept()
  }

  cEchoRequest(request) {
    const response = CEchoResponse.fromRequest(request)
    response.setStatus(Status.Success)
    return response
  }

  cStoreRequest(request, callback) {
    callback(keep(request, value))
  }

  associationReleaseRequested() {
    this.sendAssociationReleaseResponse()
  }
}

function steps(study) {
  const uid = Dataset.generateDerivedUid()
  const begun = new NCreateRequest(SopClass.ModalityPerformedProcedureStep, uid)
  begun.setDataset(
    new Dataset({
      PerformedProcedureStepStatus: 'IN PROGRESS',
      ScheduledStepAttributesSequence: [{ StudyInstanceUID: study }],
    })
  )
  const done = new NSetRequest(SopClass.ModalityPerformedProcedureStep, uid)
  done.setDataset(new Dataset({ PerformedProcedureStepStatus: 'COMPLETED' }))
  return [begun, done]
}

const requests = {
  echo: () => [new CEchoRequest()],
  store: () => [new CStoreRequest(value)],
  move: () => [CMoveRequest.createStudyMoveRequest('DCMJS', value)],
  get: () => [CGetRequest.createStudyGetRequest(value)],
  mpps: () => steps(value),
}

if (operation === 'listen') {
  const server = new Server(Station)
  server.listen(Number(port))
} else {
  const client = new Client()
  const statuses = []
  for (const request of requests[operation]()) {
    request.on('response', (response) => {
      if (response.getStatus() !== Status.Pending) statuses.push(response.getStatus())
    })
    client.addRequest(request)
  }
  client.on('cStoreRequest', (request, callback) => callback(keep(request, folder)))
  client.on('networkError', (error) => {
    console.error(error)
    process.exit(1)
  })
  client.on('closed', () => console.log('\n' + JSON.stringify(statuses)))
  client.send('127.0.0.1', Number(port), 'DCMJS', 'RADMESH')
}
