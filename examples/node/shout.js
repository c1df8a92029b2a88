// shout: answers a text with the text in capitals.
const { serve } = require("./bester");

serve({
  shout(message) {
    return message.reply(message.data.toUpperCase());
  },
});
