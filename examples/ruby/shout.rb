# shout: answers a text with the text in capitals.
require_relative "bester"

Bester.serve({
  "shout" => ->(message) { message.reply(message.data.upcase) }
})
