/* M1 of S2 in the deployment (examples/deployment): passes a message on to M1 of S3. */
#include "bester.h"

static int m1(const bester_message *message, bester_reply *reply, void *context) {
    (void)context;
    return bester_send_server(reply, "S3", NULL, message->body.data, message->body.size);
}

int main(void) { return bester_run(NULL, m1, NULL); }
