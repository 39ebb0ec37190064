/* message.c - what is sent: templates filled in once, and the marker patched into the result for each message. */
#define _GNU_SOURCE
#include "client.h"

/* text with every token replaced; the caller frees it. */
static char *replaced(const char *text, const char *token, const char *value)
{
    size_t count = 0, length = strlen(token);
    for (const char *at = text; (at = strstr(at, token)); at += length)
        count++;
    char *result = malloc(strlen(text) + count * strlen(value) + 1), *to = result;
    for (const char *at; (at = strstr(text, token)); text = at + length)
        to += sprintf(to, "%.*s%s", (int)(at - text), text, value);
    strcpy(to, text);
    return result;
}

char *numbered(const char *text, const struct connection *c)
{
    char group[16], index[16];
    sprintf(group, "%d", c->group ? (int)(c->group - groups) : 0);
    sprintf(index, "%d", c->index);
    char *half = replaced(text, "{g}", group), *whole = replaced(half, "{i}", index);
    free(half);
    return whole;
}

char *request_for(const struct connection *c, const char *more_lines)
{
    char *path = numbered(c->role->path, c), *request;
    const char *header = option.header ? option.header : "", *end = option.header ? "\r\n" : "";
    if (asprintf(&request, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%s%s%s\r\n", path, option.port, header, end,
                 more_lines) < 0)
        die("load: memory");
    free(path);
    return request;
}

static char *padded(char *text)
{
    int missing = option.size - (int)(strlen(text) - strlen("{pad}"));
    char *pad = malloc(missing > 0 ? (size_t)missing + 1 : 1);
    memset(pad, 'x', missing > 0 ? (size_t)missing : 0);
    pad[missing > 0 ? missing : 0] = 0;
    char *result = replaced(text, "{pad}", pad);
    free(pad);
    return result;
}

void write_message(struct group *group)
{
    struct connection *c = group->publisher;
    char *body = padded(replaced(numbered(option.message, c), "{marker}", BLANK_MARKER));
    if (c->role->dialect->wrap) {
        c->role->dialect->wrap(&group->message, c, body, strlen(body));
    } else if (option.envelope) {
        char length[24];
        sprintf(length, "%zu", strlen(body));
        char *whole = replaced(replaced(numbered(option.envelope, c), "{length}", length), "{body}", body);
        buffer_append(&group->message, whole, strlen(whole));
    } else {
        buffer_append(&group->message, body, strlen(body));
    }
    uint8_t *marker = memmem(group->message.data, group->message.end, BLANK_MARKER, MARKER_BYTES);
    if (!marker)
        die("load: --message without {marker}");
    group->marker_at = (size_t)(marker - group->message.data);
}

void publish(struct group *group, uint64_t due)
{
    uint8_t *marker = group->message.data + group->marker_at;
    write_digits(marker + MARKER_TIME, due - epoch, 16);
    write_digits(marker + MARKER_SEQUENCE, ++group->sent, 8);
    if (group->sent_at)
        group->sent_at[(group->sent - 1) % (uint64_t)option.window] = due;
    put(group->publisher, group->message.data, group->message.end);
}
