/*
 * The load generator: one process, one epoll loop, loopback only.
 *
 *   load -p PORT [-c CLIENTS] [-t SECONDS | -n MESSAGES] [-m MESSAGES] [-s OCTETS] [-g] [-e]
 *   load -p PORT -i CONNECTIONS
 *
 *   -c  connections at a time                      -t  begin no message after so many seconds
 *   -n  messages in all                            -m  messages of a connection
 *   -s  octets of a message                        -g  MAIL, RCPT and DATA in one group
 *   -e  STARTTLS (where compiled with -DTLS)       -w  seconds until what hangs has failed
 *   -i  hold idle connections: prints "ready" once they are there, ends at the end of its input
 *
 * A session is a list of steps: octets to send, and the codes that must come back for them. Any
 * other reply, one too many, one too early or the end of the connection is an error: it is
 * counted, the first is told, nothing new is begun, and the exit status is 1. What was measured
 * stands on stdout as one line of JSON. The clock of a transaction runs from MAIL to the reply
 * behind the mail data; that of a connection's first from connect().
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
static SSL_CTX *context;
#endif

enum { OPENING = 100 }; /* idle connections on their way at a time: a backlog is finite */

struct step {
    const char *octets;
    size_t size;
    const char *codes; /* of the replies to it, three digits each */
    enum { TALK, HANDSHAKE, FIRST, LAST } kind; /* FIRST and LAST: of a transaction */
};

struct connection {
    int fd, step, messages, handshaking, blocked, idle;
    const char *out, *codes;
    size_t left, have;
    double began;
    char in[4096];
#ifdef TLS
    SSL *tls;
#endif
};

static struct {
    int port, clients, group, starttls, hold;
    long messages, each;
    size_t size;
    double seconds, patience;
} option = {.clients = 1, .each = 1, .size = 1024, .patience = 30};

static const char mail[] = "MAIL FROM:<ann@client.example>\r\n", rcpt[] = "RCPT TO:<bob@mx.example>\r\n",
                  data[] = "DATA\r\n", ehlo[] = "EHLO client.example\r\n", quit[] = "QUIT\r\n";
static char group[sizeof mail + sizeof rcpt + sizeof data];
static struct step steps[16];
static int transaction, farewell; /* where these begin in the steps */
static int epoll, active, ready;
static long begun, done, connections, errors;
static double start, *latencies;
static char first_error[200];
static struct sockaddr_in server = {.sin_family = AF_INET};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void die(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(2);
}

static int enough(void)
{
    if (errors)
        return 1;
    if (option.messages)
        return begun >= option.messages;
    return now() - start >= option.seconds;
}

static void end(struct connection *c)
{
#ifdef TLS
    if (c->tls) {
        SSL_set_shutdown(c->tls, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
        SSL_free(c->tls);
        ERR_clear_error();
    }
#endif
    close(c->fd);
    c->fd = -1;
    active--;
    ready -= c->idle;
}

static void fail(struct connection *c, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (!errors++) {
        vsnprintf(first_error, sizeof first_error, format, arguments);
        for (char *p = first_error; *p; p++) /* it is going to stand in JSON */
            if (*p < ' ' || *p == '"' || *p == '\\' || *p == 127)
                *p = '?';
    }
    va_end(arguments);
    end(c);
}

/* The code that is to come next, for "%.*s". */
#define AWAITED(c) *(c)->codes ? 3 : 7, *(c)->codes ? (c)->codes : "nothing"

static void begin(struct connection *c)
{
    memset(c, 0, sizeof *c);
    if ((c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)) < 0)
        die("socket");
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->began = now();
    c->codes = steps[0].codes;
    active++;
    connections++;
    begun++;
    if (connect(c->fd, (void *)&server, sizeof server) < 0 && errno != EINPROGRESS) {
        fail(c, "connect: %s", strerror(errno));
        return;
    }
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event) < 0)
        die("epoll_ctl");
}

/* Have epoll tell when there is room to write, or no longer. */
static void block(struct connection *c, int blocked)
{
    if (c->blocked == blocked)
        return;
    c->blocked = blocked;
    struct epoll_event event = {.events = EPOLLIN | (blocked ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event);
}

/* As send() and recv(): -1 with EAGAIN where it has to wait. */
static ssize_t transfer(struct connection *c, char *in, const char *out, size_t size)
{
#ifdef TLS
    if (c->tls) {
        int n = in ? SSL_read(c->tls, in, size) : SSL_write(c->tls, out, size);
        if (n > 0)
            return n;
        int why = SSL_get_error(c->tls, n);
        if (why == SSL_ERROR_ZERO_RETURN)
            return 0;
        errno = why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? EAGAIN : EPROTO;
        return -1;
    }
#endif
    return in ? recv(c->fd, in, size, 0) : send(c->fd, out, size, MSG_NOSIGNAL);
}

static void push(struct connection *c)
{
    while (c->left) {
        ssize_t n = transfer(c, NULL, c->out, c->left);
        if (n < 0 && errno == EAGAIN) {
            block(c, 1);
            return;
        }
        if (n <= 0) {
            fail(c, "send: %s", strerror(errno));
            return;
        }
        c->out += n;
        c->left -= n;
    }
    block(c, 0);
}

static void advance(struct connection *c);

static void shake(struct connection *c)
{
#ifdef TLS
    if (!c->tls) {
        c->tls = SSL_new(context);
        SSL_set_fd(c->tls, c->fd);
        SSL_set_connect_state(c->tls);
        SSL_set_mode(c->tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    }
    int n = SSL_do_handshake(c->tls);
    if (n == 1) {
        c->handshaking = 0;
        block(c, 0);
        advance(c);
        return;
    }
    int why = SSL_get_error(c->tls, n);
    if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE)
        fail(c, "TLS handshake failed");
    else
        block(c, why == SSL_ERROR_WANT_WRITE);
#else
    fail(c, "compiled without TLS");
#endif
}

/* Go to the next step of the session, and begin it. */
static void advance(struct connection *c)
{
    if (steps[c->step].kind == LAST) {
        latencies[done++ % (1 << 20)] = now() - c->began;
        c->messages++;
    }
    if (c->step == farewell) {
        end(c);
        if (!enough())
            begin(c);
        return;
    }
    int next = c->step + 1;
    if (next == transaction && option.hold) {
        c->idle = 1;
        ready++;
        c->codes = "";
        return;
    }
    if (next == farewell && c->messages < option.each && !enough())
        next = transaction;
    c->step = next;
    const struct step *step = &steps[next];
    if (step->kind == HANDSHAKE) {
        c->handshaking = 1;
        shake(c);
        return;
    }
    if (next == transaction && c->messages) { /* the first was begun with the connection */
        begun++;
        c->began = now();
    }
    c->out = step->octets;
    c->left = step->size;
    c->codes = step->codes;
    push(c);
}

/* Look at the lines that have come. */
static void judge(struct connection *c)
{
    char *p = c->in, *stop = c->in + c->have, *lf;
    while (p < stop && (lf = memchr(p, '\n', stop - p))) {
        int size = (int)(lf - p) - 1;
        if (!*c->codes || c->left || size < 3 || p[size] != '\r' || memcmp(p, c->codes, 3) ||
            (size > 3 && p[3] != ' ' && p[3] != '-')) {
            fail(c, "expected %s%.*s, got '%.*s'", c->left ? "to be heard out, then " : "",
                 AWAITED(c), size < 0 ? 0 : size, p);
            return;
        }
        if (size == 3 || p[3] == ' ')
            c->codes += 3;
        p = lf + 1;
    }
    c->have = stop - p;
    memmove(c->in, p, c->have);
    if (c->have == sizeof c->in)
        fail(c, "a reply line is too long");
    else if (!*c->codes && c->have)
        fail(c, "expected nothing, got '%.*s'", (int)c->have, c->in);
    else if (!*c->codes)
        advance(c);
}

static void pull(struct connection *c)
{
    int more;
    do {
        ssize_t n = transfer(c, c->in + c->have, NULL, sizeof c->in - c->have);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n < 0)
            fail(c, "recv: %s", strerror(errno));
        else if (n == 0)
            fail(c, "expected %.*s, got the end of the connection", AWAITED(c));
        else {
            c->have += n;
            judge(c);
        }
        more = 0;
#ifdef TLS
        more = c->fd >= 0 && c->tls && !c->handshaking && SSL_pending(c->tls) > 0;
#endif
    } while (more);
}

static void add(const char *octets, size_t size, const char *codes, int kind)
{
    static int count;
    steps[count++] = (struct step){octets, size, codes, kind};
    if (kind == FIRST)
        transaction = count - 1;
    farewell = count - 1;
}

static void write_message(char **body, size_t *size)
{
    static const char header[] = "From: <ann@client.example>\r\nTo: <bob@mx.example>\r\n"
                                 "Subject: load\r\nMessage-ID: <1@client.example>\r\n\r\n";
    char *p = *body = malloc(option.size + 1024);
    if (!p)
        die("malloc");
    p = stpcpy(p, header);
    for (int line = 0; p < *body + option.size; line++) {
        int start = 0, width = 74;
        if (p + width + 2 > *body + option.size)
            width = 8;
        if (line % 50 == 9)
            for (; start < 2; start++)
                *p++ = '.';
        for (int i = start; i < width; i++)
            *p++ = 'a' + (line + i) % 26;
        p = stpcpy(p, "\r\n");
    }
    p = stpcpy(p, ".\r\n");
    *size = p - *body;
}

static void write_session(const char *body, size_t size)
{
    add("", 0, "220", TALK);
    add(ehlo, strlen(ehlo), "250", TALK);
    if (option.starttls) {
        add("STARTTLS\r\n", 10, "220", TALK);
        add("", 0, "", HANDSHAKE);
        add(ehlo, strlen(ehlo), "250", TALK);
    }
    if (option.group) {
        snprintf(group, sizeof group, "%s%s%s", mail, rcpt, data);
        add(group, strlen(group), "250250354", FIRST);
    } else {
        add(mail, strlen(mail), "250", FIRST);
        add(rcpt, strlen(rcpt), "250", TALK);
        add(data, strlen(data), "354", TALK);
    }
    add(body, size, "250", LAST);
    add(quit, strlen(quit), "221", TALK);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void read_options(int count, char **arguments)
{
    for (int o; (o = getopt(count, arguments, "p:c:t:n:m:s:w:i:ge")) != -1;)
        switch (o) {
        case 'p': option.port = atoi(optarg); break;
        case 'c': option.clients = atoi(optarg); break;
        case 't': option.seconds = atof(optarg); break;
        case 'n': option.messages = atol(optarg); break;
        case 'm': option.each = atol(optarg); break;
        case 's': option.size = atol(optarg); break;
        case 'w': option.patience = atof(optarg); break;
        case 'i': option.hold = atoi(optarg); break;
        case 'g': option.group = 1; break;
        case 'e': option.starttls = 1; break;
        default: exit(2);
        }
    if (option.hold)
        option.clients = option.hold;
    if (option.port <= 0 || option.clients <= 0) {
        fputs("load: -p PORT is needed, and -c is at least 1\n", stderr);
        exit(2);
    }
#ifdef TLS
    if (!(context = SSL_CTX_new(TLS_client_method())))
        die("SSL_CTX_new");
    SSL_CTX_set_verify(context, SSL_VERIFY_NONE, NULL);
#else
    if (option.starttls) {
        fputs("load: compiled without TLS\n", stderr);
        exit(2);
    }
#endif
}

int main(int count, char **arguments)
{
    char *body;
    size_t size;
    read_options(count, arguments);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    write_message(&body, &size);
    write_session(body, size);
    server.sin_port = htons(option.port);
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    struct connection *all = calloc(option.clients, sizeof *all);
    latencies = malloc(sizeof *latencies << 20);
    if (!all || !latencies || (epoll = epoll_create1(0)) < 0)
        die("set up");
    int opened = 0, told = 0, at_once = option.hold ? OPENING : option.clients;
    struct epoll_event events[256];
    start = now();
    double hard = start + option.patience + (option.messages ? 0 : option.seconds);
    while (!told || active) {
        while (opened < option.clients && opened - ready < at_once && !errors &&
               (option.hold || !opened || !enough()))
            begin(&all[opened++]);
        if (option.hold && !told && ready == option.hold) {
            told = 1;
            printf("ready\n");
            fflush(stdout);
        }
        if (!option.hold && !active)
            break;
        if (told || (option.hold && errors)) {
            struct pollfd input = {0, POLLIN, 0};
            char octet;
            if (errors || (poll(&input, 1, 0) > 0 && read(0, &octet, 1) <= 0))
                break;
        } else if (now() > hard) {
            for (int i = 0; i < opened; i++)
                if (all[i].fd >= 0)
                    fail(&all[i], "expected %.3s, got nothing in time", all[i].codes);
            break;
        }
        int many = epoll_wait(epoll, events, 256, 100);
        for (int i = 0; i < many; i++) {
            struct connection *c = events[i].data.ptr;
            if (c->fd < 0)
                continue;
            if (c->handshaking)
                shake(c);
            else {
                if (events[i].events & EPOLLOUT)
                    push(c);
                if (c->fd >= 0 && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                    pull(c);
            }
        }
    }
    double seconds = now() - start;
    long kept = done < 1 << 20 ? done : 1 << 20;
    qsort(latencies, kept, sizeof *latencies, ascending);
#define AT(share) (kept ? latencies[(long)((kept - 1) * (share))] * 1e3 : 0.0)
    printf("{\"messages\": %ld, \"connections\": %ld, \"seconds\": %.4f, \"rate\": %.2f, "
           "\"megabytes\": %.2f, \"p50\": %.3f, \"p99\": %.3f, \"errors\": %ld, "
           "\"first_error\": \"%s\"}\n",
           done, connections, seconds, done / seconds, done / seconds * size / 1e6, AT(.5), AT(.99),
           errors, first_error);
    return errors ? 1 : 0;
}
