// M2 of S1 in the deployment (examples/deployment): passes a message on to S2, where it arrives as a message for M1.
const { sendServers, serve } = require("./bester");

serve({
  M2(message) {
    return sendServers(["S2"], message.raw, "M1");
  },
});
