/* bester.h: a Bester handler in C. Copy bester.h and bester.c into your program; they need libzmq and libmsgpackc.
 *
 *     static int hello(const bester_message *message, bester_reply *reply, void *context) {
 *         return bester_send_clients(reply, &message->user, 1, "\"hello\"", 7);
 *     }
 *     int main(void) { return bester_run(NULL, hello, NULL); }
 *
 * One thread, one message at a time. Nothing here is kept between two calls of the handler: copy what you need longer.
 */
#ifndef BESTER_H
#define BESTER_H

#include <stddef.h>
#include <stdint.h>

/* Bytes in UTF-8, with their length: there is no 0 at the end, and there may be some within. `data` is NULL for nothing. */
typedef struct {
    const char *data;
    size_t size;
} bester_text;

typedef struct {
    bester_text type; /* the message type */
    bester_text body; /* what was sent: JSON text, just as the sender wrote it */
    bester_text user; /* who sent it; data is NULL where no user of this server did */
    bester_text id;   /* the same at every redelivery */
    int64_t attempt;  /* 1, or more where a handler before this one was lost over it */
} bester_message;

typedef struct bester_reply bester_reply;

/* Handles one message: adds commands to the reply and returns 0; none at all consumes the message. Any other value than
 * 0 is a failure (see bester_fail): none of its commands is carried out. */
typedef int (*bester_handler)(const bester_message *message, bester_reply *reply, void *context);

/* Each adds a command, and returns 0; -1 where there is no memory. `json` is JSON text. */
int bester_send_clients(bester_reply *reply, const bester_text *users, size_t count, const char *json, size_t size);
int bester_send_handler(bester_reply *reply, const char *type, const char *json, size_t size);
int bester_send_server(bester_reply *reply, const char *server, const char *type, const char *json, size_t size);
/* (`type` may be NULL: then it arrives as the type that is being answered.) */

/* Says that this message failed, and why, for the server's log; the sender learns only that it did. Returns -1. */
int bester_fail(bester_reply *reply, const char *note);

/* Refuses the message: the sender's report is bad, `refused`, with this note in it. Returns -1. */
int bester_refuse(bester_reply *reply, const char *note);

/* All fields may be 0 or NULL; then the environment says it, else the value behind the semicolon is taken. */
typedef struct {
    const char *fabric;     /* where the broker is, as ipc://bester-data/fabric.sock; BESTER_FABRIC */
    const char *types;      /* the types to serve, with commas between; BESTER_TYPES */
    const char *name;       /* this handler's name in logs; BESTER_NAME; handler-PID */
    int credit;             /* messages that the broker sends before it has an answer; 64 */
    int lease_ms;           /* how long one message may keep this program from saying that it lives; 30000 */
    const char *key;        /* CURVE: a file with this program's secret key; BESTER_KEY; no encryption */
    const char *server_key; /* CURVE: the server's public key, 40 characters; BESTER_SERVER_KEY */
} bester_options;

/* Serves until SIGTERM or SIGINT: then it takes no more, answers what it has, and returns 0. Returns 1, having said why
 * on standard error, where it cannot begin or the broker does not take it. `options` may be NULL. Call it once, from one thread. */
int bester_run(const bester_options *options, bester_handler handler, void *context);

#endif
