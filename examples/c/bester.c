/* bester.c: the fabric protocol (docs/fabric-protocol.md) for a handler in C. See bester.h. */
#define _POSIX_C_SOURCE 200809L
#include "bester.h"

#include <errno.h>
#include <msgpack.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

enum { HELLO = 1, WELCOME = 2, HEARTBEAT = 3, GOODBYE = 4, ERROR = 5, REQUEST = 10, REPLY = 11 };
enum { FAILED = 1, REFUSED = 2 };
enum { MOST_FRAMES = 4096 };    /* of one ZeroMQ message: more than any broker sends */
enum { ATTACHED_ABOVE = 16384 }; /* bytes of a body that go beside the batch */
enum { INLINE_MOST = 32 << 20 }; /* bytes of a reply within the batch: a frame above 64 MiB ends the link */
enum { MOST_BYTES = 64 << 20, MOST_COMMANDS = 10000 }; /* of one reply */
enum { BATCH_BYTES = 1 << 20 }; /* a batch with so many is sent */
enum { LINGER_MS = 1000 };  /* how long the last replies may take to leave */
enum { NOTE_BYTES = 2000 }; /* 500 letters, whatever they are; the broker cuts what is longer */
static const char NO_REASON[] = "the handler refused the message";

/* Output of one turn of the loop: a batch, and the bodies beside it. */
typedef struct {
    msgpack_sbuffer batch;
    size_t messages;
    zmq_msg_t *attached;
    size_t attachments;
} outgoing;

struct bester_reply {
    msgpack_sbuffer commands;
    size_t count;
    outgoing *out;
    size_t attachments; /* those before this reply; a failed one takes its own back */
    size_t bytes;       /* of the bodies */
    int status;
    bool cannot_be_sent;
    char note[NOTE_BYTES + 1];
};

typedef struct {
    bester_options options;
    char types[1024], name[160], secret[41], public[41];
    void *context, *socket;
    outgoing out;
    int64_t sent_ms, heartbeat_ms;
    int quiet; /* looks in vain, of half a heartbeat each: a program that was not run for a while has looked once */
    bool told; /* that no broker answers */
    bool welcome; /* the broker has taken this handler: before that there is nothing to finish */
    bool left; /* GOODBYE was sent */
    bool over; /* and was echoed, or there is nothing left to do */
    bool refused; /* the broker does not take this handler, and has given the reason */
} handler_link;

static volatile sig_atomic_t stopping;

static void on_signal(int number) { stopping = number; }

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Returns the bytes of the letter in UTF-8 with which a text begins; 0 where there is none. */
static size_t letter_size(const unsigned char *at) {
    size_t size = 0;
    if (at[0] < 0x80) size = 1;
    if (at[0] >= 0xc2 && at[0] <= 0xdf) size = 2;
    if (at[0] >= 0xe0 && at[0] <= 0xef) size = 3;
    if (at[0] >= 0xf0 && at[0] <= 0xf4) size = 4;
    for (size_t n = 1; n < size; n++)
        if ((at[n] & 0xc0) != 0x80) return 0;
    if ((at[0] == 0xe0 && at[1] < 0xa0) || (at[0] == 0xf0 && at[1] < 0x90)) return 0; /* longer than it need be */
    if ((at[0] == 0xed && at[1] >= 0xa0) || (at[0] == 0xf4 && at[1] >= 0x90)) return 0; /* no letter has this number */
    return size;
}

/* Copies whole letters, as many as fit in front of a 0, and '?' for each byte that is none: strings on the wire are UTF-8. */
static void copy_text(char *to, size_t room, const char *from) {
    size_t size = 0;
    while (*from != 0) {
        size_t letter = letter_size((const unsigned char *)from), taken = letter > 0 ? letter : 1;
        if (size + taken >= room) break;
        memcpy(to + size, letter > 0 ? from : "?", taken);
        size += taken;
        from += taken;
    }
    to[size] = 0;
}

/* --- what goes out --- */

static void clear(outgoing *out) {
    msgpack_sbuffer_clear(&out->batch);
    for (size_t n = 0; n < out->attachments; n++) zmq_msg_close(&out->attached[n]);
    out->messages = out->attachments = 0;
}

static void pack_text(msgpack_packer *packer, const char *text, size_t size) {
    msgpack_pack_str(packer, size);
    msgpack_pack_str_body(packer, text, size);
}

/* Sends the batch, if there is something in it. What cannot be sent is dropped: the link is lost then, and its requests
 * are given to another handler. */
static void flush(handler_link *link) {
    outgoing *out = &link->out;
    if (out->messages == 0) return;
    msgpack_sbuffer frame;
    msgpack_packer packer;
    msgpack_sbuffer_init(&frame);
    msgpack_packer_init(&packer, &frame, msgpack_sbuffer_write);
    msgpack_pack_array(&packer, out->messages);
    msgpack_sbuffer_write(&frame, out->batch.data, out->batch.size);
    int flags = ZMQ_DONTWAIT | (out->attachments > 0 ? ZMQ_SNDMORE : 0);
    bool sent = zmq_send(link->socket, frame.data, frame.size, flags) >= 0;
    for (size_t n = 0; sent && n < out->attachments; n++) {
        flags = ZMQ_DONTWAIT | (n + 1 < out->attachments ? ZMQ_SNDMORE : 0);
        sent = zmq_msg_send(&out->attached[n], link->socket, flags) >= 0;
    }
    msgpack_sbuffer_destroy(&frame);
    clear(out);
    link->sent_ms = now_ms();
}

static msgpack_packer begin(handler_link *link, size_t fields, int op) {
    msgpack_packer packer;
    msgpack_packer_init(&packer, &link->out.batch, msgpack_sbuffer_write);
    msgpack_pack_array(&packer, fields);
    msgpack_pack_int(&packer, op);
    link->out.messages++;
    return packer;
}

static void say_hello(handler_link *link) {
    msgpack_packer packer = begin(link, 5, HELLO);
    const bester_options *options = &link->options;
    msgpack_pack_int(&packer, 1);
    pack_text(&packer, "handler", 7);
    pack_text(&packer, options->name, strlen(options->name));
    msgpack_pack_map(&packer, 4);
    pack_text(&packer, "types", 5);
    size_t count = 1;
    for (const char *at = options->types; *at; at++) count += *at == ',';
    msgpack_pack_array(&packer, count);
    for (const char *type = options->types;; type = strchr(type, ',') + 1) {
        size_t size = strcspn(type, ",");
        pack_text(&packer, type, size);
        if (type[size] == 0) break;
    }
    pack_text(&packer, "credit", 6);
    msgpack_pack_int(&packer, options->credit);
    pack_text(&packer, "lease_ms", 8);
    msgpack_pack_int(&packer, options->lease_ms);
    pack_text(&packer, "software", 8);
    pack_text(&packer, "bester.c", 8);
}

/* --- replies --- */

static int end_badly(bester_reply *reply, int status, const char *note) {
    reply->status = status;
    copy_text(reply->note, sizeof reply->note, note[0] != 0 ? note : "failed");
    return -1;
}

static int command(bester_reply *reply, const char *name, const bester_text *targets, size_t count, const char *json,
                   size_t size, const char *type) {
    outgoing *out = reply->out;
    if (reply->count == MOST_COMMANDS || size > MOST_BYTES - reply->bytes) {
        reply->cannot_be_sent = true;
        return end_badly(reply, FAILED, "a reply has 10000 commands, and bodies of 67108864 bytes, at most");
    }
    reply->bytes += size;
    msgpack_packer packer;
    msgpack_packer_init(&packer, &reply->commands, msgpack_sbuffer_write);
    msgpack_pack_array(&packer, type != NULL ? 4 : 3);
    pack_text(&packer, name, strlen(name));
    msgpack_pack_array(&packer, count);
    for (size_t n = 0; n < count; n++) pack_text(&packer, targets[n].data, targets[n].size);
    if (size > ATTACHED_ABOVE || reply->commands.size > INLINE_MOST) {
        zmq_msg_t *more = realloc(out->attached, (out->attachments + 1) * sizeof *more);
        if (more == NULL) return -1;
        out->attached = more;
        if (zmq_msg_init_size(&more[out->attachments], size) != 0) return -1;
        memcpy(zmq_msg_data(&more[out->attachments]), json, size);
        msgpack_pack_uint64(&packer, ++out->attachments);
    } else {
        msgpack_pack_bin(&packer, size);
        msgpack_pack_bin_body(&packer, json, size);
    }
    if (type != NULL) pack_text(&packer, type, strlen(type));
    reply->count++;
    return 0;
}

int bester_send_clients(bester_reply *reply, const bester_text *users, size_t count, const char *json, size_t size) {
    for (size_t n = 0; n < count; n++)
        if (users[n].data == NULL) return bester_fail(reply, "there is no user to send this to");
    return command(reply, "sendClients", users, count, json, size, NULL);
}

int bester_send_handler(bester_reply *reply, const char *type, const char *json, size_t size) {
    bester_text target = {type, strlen(type)};
    return command(reply, "sendHandler", &target, 1, json, size, NULL);
}

int bester_send_server(bester_reply *reply, const char *server, const char *type, const char *json, size_t size) {
    bester_text target = {server, strlen(server)};
    return command(reply, "sendServers", &target, 1, json, size, type);
}

int bester_fail(bester_reply *reply, const char *note) { return end_badly(reply, FAILED, note); }

int bester_refuse(bester_reply *reply, const char *note) { return end_badly(reply, REFUSED, note[0] != 0 ? note : NO_REASON); }

static void answer(handler_link *link, int64_t token, const bester_message *message, const char *fault,
                   bester_handler handler, void *context) {
    bester_reply reply = {.out = &link->out, .attachments = link->out.attachments};
    msgpack_sbuffer_init(&reply.commands);
    int result = fault != NULL ? bester_fail(&reply, fault) : handler(message, &reply, context);
    if (result != 0 && reply.status == 0) bester_fail(&reply, "the handler failed and did not say why");
    if (reply.status != 0) { /* none of its commands is carried out */
        while (link->out.attachments > reply.attachments) zmq_msg_close(&link->out.attached[--link->out.attachments]);
        reply.count = 0;
        msgpack_sbuffer_clear(&reply.commands);
    }
    msgpack_packer packer = begin(link, reply.cannot_be_sent ? 6 : 5, REPLY);
    msgpack_pack_int64(&packer, token);
    msgpack_pack_int(&packer, reply.status);
    msgpack_pack_array(&packer, reply.count);
    if (reply.commands.size > 0) msgpack_sbuffer_write(&link->out.batch, reply.commands.data, reply.commands.size);
    if (reply.status != 0)
        pack_text(&packer, reply.note, strlen(reply.note));
    else
        msgpack_pack_nil(&packer);
    if (reply.cannot_be_sent) pack_text(&packer, "bad-reply", 9);
    msgpack_sbuffer_destroy(&reply.commands);
}

/* --- what comes in --- */

static bool is_int(const msgpack_object *object) {
    return object->type == MSGPACK_OBJECT_POSITIVE_INTEGER || object->type == MSGPACK_OBJECT_NEGATIVE_INTEGER;
}

static bester_text text_of(const msgpack_object *object) {
    if (object->type == MSGPACK_OBJECT_STR) return (bester_text){object->via.str.ptr, object->via.str.size};
    if (object->type == MSGPACK_OBJECT_BIN) return (bester_text){object->via.bin.ptr, object->via.bin.size};
    return (bester_text){NULL, 0};
}

static bool is_text(const msgpack_object *object, const char *text) {
    bester_text found = text_of(object);
    return found.data != NULL && found.size == strlen(text) && memcmp(found.data, text, found.size) == 0;
}

static const msgpack_object *value_of(const msgpack_object *map, const char *key) {
    if (map->type != MSGPACK_OBJECT_MAP) return NULL;
    for (uint32_t n = 0; n < map->via.map.size; n++)
        if (is_text(&map->via.map.ptr[n].key, key)) return &map->via.map.ptr[n].val;
    return NULL;
}

static void on_request(handler_link *link, const msgpack_object *fields, uint32_t count, zmq_msg_t *frames,
                       size_t frame_count, bester_handler handler, void *context) {
    if (count < 6 || !is_int(&fields[1])) return; /* there is nothing to answer it with */
    const msgpack_object *body = &fields[3], *id = value_of(&fields[5], "id");
    const msgpack_object *attempt = value_of(&fields[5], "attempt");
    bester_message message = {text_of(&fields[2]), text_of(body), text_of(&fields[4]), {NULL, 0}, 1};
    if (id != NULL) message.id = text_of(id);
    if (attempt != NULL && is_int(attempt)) message.attempt = attempt->via.i64;
    if (body->type == MSGPACK_OBJECT_POSITIVE_INTEGER && body->via.u64 >= 1 && body->via.u64 < frame_count) {
        zmq_msg_t *frame = &frames[body->via.u64];
        message.body = (bester_text){zmq_msg_data(frame), zmq_msg_size(frame)};
    }
    const char *fault = message.body.data == NULL ? "the body is not there" : NULL;
    answer(link, fields[1].via.i64, &message, fault, handler, context);
    if (link->out.batch.size >= BATCH_BYTES || now_ms() - link->sent_ms >= link->heartbeat_ms / 2)
        flush(link); /* a long batch must not look like silence */
}

static void on_message(handler_link *link, const msgpack_object *message, zmq_msg_t *frames, size_t frame_count,
                       bester_handler handler, void *context) {
    if (message->type != MSGPACK_OBJECT_ARRAY || message->via.array.size == 0) return;
    const msgpack_object *fields = message->via.array.ptr;
    uint32_t count = message->via.array.size;
    if (fields[0].type != MSGPACK_OBJECT_POSITIVE_INTEGER) return;
    switch (fields[0].via.u64) {
    case REQUEST:
        on_request(link, fields, count, frames, frame_count, handler, context);
        break;
    case WELCOME: {
        link->told = false;
        link->welcome = true;
        const msgpack_object *heartbeat = count > 3 ? value_of(&fields[3], "heartbeat_ms") : NULL;
        if (heartbeat != NULL && heartbeat->type == MSGPACK_OBJECT_POSITIVE_INTEGER && heartbeat->via.u64 >= 10)
            link->heartbeat_ms = heartbeat->via.u64 < 60000 ? (int64_t)heartbeat->via.u64 : 60000;
        break;
    }
    case GOODBYE:
        link->over = link->left;
        break;
    case ERROR:
        if (count > 1 && is_text(&fields[1], "hello-first")) {
            clear(&link->out); /* what was asked before is void */
            if (link->left)
                link->over = true;
            else
                say_hello(link);
        } else if (count > 2) {
            bester_text code = text_of(&fields[1]), text = text_of(&fields[2]);
            bool of_hello = count > 3 && is_int(&fields[3]) && fields[3].via.i64 == HELLO;
            link->refused = of_hello && !is_text(&fields[1], "overloaded") && !is_text(&fields[1], "unreachable") &&
                            !is_text(&fields[1], "try-later");
            link->over = link->over || link->refused; /* saying it again would not help */
            fprintf(stderr, "bester: refused: %.*s: %.*s\n", (int)code.size, code.data ? code.data : "",
                    (int)text.size, text.data ? text.data : "");
        }
        break;
    default: /* HEARTBEAT, and what later versions say */
        break;
    }
}

/* Reads one ZeroMQ message; false where there is none. */
static bool receive(handler_link *link, bester_handler handler, void *context) {
    zmq_msg_t *frames = NULL;
    size_t count = 0;
    bool more = true, whole = true;
    while (more) {
        zmq_msg_t frame;
        zmq_msg_init(&frame);
        if (zmq_msg_recv(&frame, link->socket, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(&frame);
            whole = false;
            break;
        }
        more = zmq_msg_more(&frame);
        zmq_msg_t *grown = count < MOST_FRAMES ? realloc(frames, (count + 1) * sizeof *frames) : NULL;
        if (grown == NULL) {
            zmq_msg_close(&frame);
            whole = count > 0 && count < MOST_FRAMES ? false : whole;
            continue;
        }
        frames = grown;
        frames[count++] = frame;
    }
    bool came = count > 0;
    if (came && whole) {
        msgpack_unpacked batch;
        msgpack_unpacked_init(&batch);
        size_t end = 0;
        link->quiet = 0;
        if (msgpack_unpack_next(&batch, zmq_msg_data(&frames[0]), zmq_msg_size(&frames[0]), &end) ==
                MSGPACK_UNPACK_SUCCESS &&
            batch.data.type == MSGPACK_OBJECT_ARRAY)
            for (uint32_t n = 0; n < batch.data.via.array.size; n++)
                on_message(link, &batch.data.via.array.ptr[n], frames, count, handler, context);
        msgpack_unpacked_destroy(&batch);
    }
    for (size_t n = 0; n < count; n++) zmq_msg_close(&frames[n]);
    free(frames);
    return came;
}

/* --- the link --- */

static bool open_link(handler_link *link) {
    int linger = 0, unlimited = 0, ipv6 = strchr(link->options.fabric, '[') != NULL;
    link->socket = zmq_socket(link->context, ZMQ_DEALER);
    if (link->socket == NULL) return false;
    zmq_setsockopt(link->socket, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(link->socket, ZMQ_SNDHWM, &unlimited, sizeof unlimited);
    zmq_setsockopt(link->socket, ZMQ_RCVHWM, &unlimited, sizeof unlimited); /* see the protocol: libzmq may abort */
    zmq_setsockopt(link->socket, ZMQ_IPV6, &ipv6, sizeof ipv6);
    if (link->secret[0] != 0 &&
        (zmq_setsockopt(link->socket, ZMQ_CURVE_SECRETKEY, link->secret, 41) != 0 ||
         zmq_setsockopt(link->socket, ZMQ_CURVE_PUBLICKEY, link->public, 41) != 0 ||
         zmq_setsockopt(link->socket, ZMQ_CURVE_SERVERKEY, link->options.server_key, 41) != 0))
        return false;
    if (zmq_connect(link->socket, link->options.fabric) != 0) return false;
    link->sent_ms = now_ms();
    link->quiet = 0;
    link->welcome = false;
    say_hello(link);
    flush(link);
    return true;
}

static void serve(handler_link *link, bester_handler handler, void *context) {
    while (!link->over) {
        if (stopping && !link->left) {
            msgpack_packer packer = begin(link, 2, GOODBYE);
            pack_text(&packer, "stopping", 8);
            link->left = true;
            flush(link);
            if (!link->welcome) break;
        }
        zmq_pollitem_t item = {link->socket, 0, ZMQ_POLLIN, 0};
        if (zmq_poll(&item, 1, link->heartbeat_ms / 2) == 0) link->quiet++;
        for (int n = 0; n < 64 && !link->over && receive(link, handler, context); n++) flush(link);
        flush(link);
        if (link->quiet >= 6) { /* three heartbeats of silence: begin anew */
            if (!link->told && !link->left)
                fprintf(stderr, "bester: no broker answers at %s; trying again\n", link->options.fabric);
            link->told = true;
            link->over = link->left;
            zmq_close(link->socket);
            if (!link->over && !open_link(link)) link->over = true;
            if (link->over) link->socket = NULL;
        } else if (now_ms() - link->sent_ms >= link->heartbeat_ms / 2) {
            begin(link, 1, HEARTBEAT);
            flush(link);
        }
    }
}

static const char *chosen(const char *given, const char *variable, const char *otherwise) {
    const char *value = given != NULL ? given : getenv(variable);
    return value != NULL && value[0] != 0 ? value : otherwise;
}

static int complain(const char *what, const char *why) {
    fprintf(stderr, "bester: %s: %s\n", what, why);
    return 1;
}

static int configure(handler_link *link) {
    bester_options *options = &link->options;
    char name[40];
    snprintf(name, sizeof name, "handler-%ld", (long)getpid());
    options->fabric = chosen(options->fabric, "BESTER_FABRIC", NULL);
    options->types = chosen(options->types, "BESTER_TYPES", NULL);
    options->server_key = chosen(options->server_key, "BESTER_SERVER_KEY", NULL);
    options->key = chosen(options->key, "BESTER_KEY", NULL);
    if (options->fabric == NULL) return complain("where is the broker?", "set BESTER_FABRIC to its URL");
    if (options->types == NULL) return complain("which types?", "set BESTER_TYPES");
    if (snprintf(link->types, sizeof link->types, "%s", options->types) >= (int)sizeof link->types)
        return complain("BESTER_TYPES", "is too long");
    copy_text(link->name, sizeof link->name, chosen(options->name, "BESTER_NAME", name));
    options->types = link->types;
    options->name = link->name;
    if (options->credit <= 0) options->credit = 64;
    if (options->lease_ms <= 0) options->lease_ms = 30000;
    if (options->key == NULL) return 0;
    FILE *file = fopen(options->key, "r");
    if (file == NULL) return complain(options->key, strerror(errno));
    bool read = fscanf(file, "%40s", link->secret) == 1 && strlen(link->secret) == 40;
    fclose(file);
    if (!read || zmq_curve_public(link->public, link->secret) != 0)
        return complain(options->key, "holds no secret key of 40 characters");
    if (options->server_key == NULL || strlen(options->server_key) != 40)
        return complain("BESTER_SERVER_KEY", "is the server's public key, 40 characters");
    return 0;
}

int bester_run(const bester_options *options, bester_handler handler, void *context) {
    handler_link link = {.heartbeat_ms = 2000};
    if (options != NULL) link.options = *options;
    struct sigaction action = {.sa_handler = on_signal};
    if (configure(&link) != 0) return 1;
    signal(SIGHUP, SIG_IGN); /* a closed terminal ends no handler, as it ends no server */
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    msgpack_sbuffer_init(&link.out.batch);
    link.context = zmq_ctx_new();
    if (link.context == NULL || !open_link(&link)) return complain(link.options.fabric, zmq_strerror(errno));
    serve(&link, handler, context);
    if (link.socket != NULL) {
        int linger = LINGER_MS;
        zmq_setsockopt(link.socket, ZMQ_LINGER, &linger, sizeof linger);
        zmq_close(link.socket);
    }
    zmq_ctx_term(link.context);
    clear(&link.out);
    free(link.out.attached);
    msgpack_sbuffer_destroy(&link.out.batch);
    if (link.refused) return 1;
    return link.left ? 0 : complain(link.options.fabric, zmq_strerror(errno));
}
