# M1 of S3 in the deployment (examples/deployment): delivers to U2, with what S3 was told of the way the message came.
require_relative "bester"

Bester.serve({
  "M1" => ->(message) { Bester.send_clients(["U2"], { message: message.data, came_by: message.path }) }
})
