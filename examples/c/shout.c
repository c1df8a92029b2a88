/* shout: answers a text with the text in capitals. */
#include "bester.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

static int shout(const bester_message *message, bester_reply *reply, void *context) {
    (void)context;
    size_t size = message->body.size, first = 0;
    char *text = malloc(size + 1);
    if (text == NULL) return bester_fail(reply, "no memory");
    memcpy(text, message->body.data, size);
    while (first < size && isspace((unsigned char)text[first])) first++;
    int result = first < size && text[first] == '"' ? 0 : bester_fail(reply, "shout takes a text");
    for (size_t n = 0; n < size && result == 0; n++)
        if (text[n] == '\\')
            n += n + 1 < size && text[n + 1] == 'u' ? 5 : 1; /* \n stays \n */
        else if (text[n] >= 'a' && text[n] <= 'z')
            text[n] -= 'a' - 'A';
    if (result == 0) result = bester_send_clients(reply, &message->user, 1, text, size);
    free(text);
    return result;
}

int main(void) { return bester_run(NULL, shout, NULL); }
