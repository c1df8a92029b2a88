/*
 * A connection's stream of bytes, plain or inside TLS. Part of loadgen.c, which has the connections.
 *
 * `take` and `give` are recv and send: how many bytes came or went, 0 at the end of the stream, -1 with errno. TLS needs
 * OpenSSL and is compiled in by -DWITH_TLS alone, so that the comparison with plain peers needs no more than a compiler.
 */
#ifdef WITH_TLS
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

static SSL_CTX *context;

/* The authorities are those of SSL_CERT_FILE; the certificate must be for the address. */
static void prepare_tls(void)
{
    static const unsigned char protocol[] = "\10bester/1";
    context = SSL_CTX_new(TLS_client_method());
    if (!context || !SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION) ||
        !SSL_CTX_set_default_verify_paths(context) ||
        SSL_CTX_set_alpn_protos(context, protocol, sizeof protocol - 1))
        fail("OpenSSL: %s", ERR_error_string(ERR_get_error(), NULL));
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
}

/* Shake hands, blocking but bounded by the socket's own patience. */
static void secure(struct connection *c)
{
    SSL *tls = SSL_new(context);
    c->tls = tls;
    if (!tls || !SSL_set_fd(tls, c->fd) || !X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(tls), "127.0.0.1") ||
        SSL_connect(tls) != 1)
        fail("no handshake of TLS: %s", ERR_error_string(ERR_get_error(), NULL));
}

static ssize_t tls_result(struct connection *c, int result)
{
    if (result > 0)
        return result;
    int why = SSL_get_error(c->tls, result);
    if (why == SSL_ERROR_ZERO_RETURN)
        return 0;
    if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE)
        errno = EAGAIN;
    else if (why == SSL_ERROR_SSL)
        fail("TLS: %s", ERR_error_string(ERR_get_error(), NULL));
    return -1;
}

/* A socket of TLS has no MSG_DONTWAIT: from here on nothing blocks. */
static void stop_blocking(struct connection *c)
{
    if (c->tls)
        fcntl(c->fd, F_SETFL, O_NONBLOCK);
}
#else
static void prepare_tls(void)
{
    fail("compiled without TLS");
}

static void secure(struct connection *c)
{
    fail("connection %u: compiled without TLS", c->index);
}

static void stop_blocking(struct connection *c)
{
    (void)c;
}
#endif

static ssize_t take(struct connection *c, char *at, size_t bytes, int flags)
{
#ifdef WITH_TLS
    if (c->tls)
        return tls_result(c, SSL_read(c->tls, at, (int)bytes));
#endif
    return recv(c->fd, at, bytes, flags);
}

static ssize_t give(struct connection *c, const char *at, size_t bytes, int flags)
{
#ifdef WITH_TLS
    if (c->tls)
        return tls_result(c, SSL_write(c->tls, at, (int)bytes));
#endif
    return send(c->fd, at, bytes, flags | MSG_NOSIGNAL);
}
