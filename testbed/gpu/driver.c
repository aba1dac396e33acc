/* A stand-in for the NVIDIA driver's libcuda.so.1: device memory is host memory, and nothing runs before it must.
 *
 * A stream is a list of deferred operations. They run when somebody synchronises, in one of two orders that a GPU would
 * be as free to choose: whatever else can run first, or the stream that is waited for first. So a missing synchronise
 * leaves results unwritten, and a missing event leaves a copy and a computation in the wrong order under one of the two.
 *
 * Each use of memory is checked when it is asked for and again when it happens: bounds, freed memory, and whether host
 * memory is page-locked. What a real GPU would do silently wrong is written down as a violation. Freed addresses are
 * never given out again. Every call can be made to fail. What pycuda links to and is not here, gets a stub (see
 * driver.py) that returns CUDA_ERROR_NOT_SUPPORTED.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, INVALID_CONTEXT = 201,
       INVALID_HANDLE = 400, NOT_READY = 600, ILLEGAL_ADDRESS = 700, NOT_SUPPORTED = 801, UNKNOWN = 999 };
enum kind { DEVICE, HOST };
enum what { COPY_TO_DEVICE, COPY_TO_HOST, RECORD, WAIT, CALL };
enum { POISON = 0xA5, PAGE = 4096, DEPTH = 16, FAULTS = 32 };

struct block { struct block *next; enum kind kind; char *base; size_t size, mapped; int freed; };
struct event { struct event *next; uint64_t recorded, done; struct stream *stream; };
struct op { struct op *next; enum what what; char *to, *from; size_t size; struct event *event; uint64_t generation;
            int (*call)(void *); void *argument; };
struct stream { struct stream *next; struct op *first, *last; };
struct fault { char name[48]; int after, code; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct block *blocks;
static struct stream *streams;
static struct event *events;
static struct fault faults[FAULTS];
static char violations[8192];
static size_t total_memory = (size_t)8 << 30, used_memory;
static int initialized, retained, sticky, policy, device_count = 1, capability = 89;
static char device_name[64] = "Stand-in GPU";
static __thread void *current[DEPTH];
static __thread int depth;
static int primary; /* its address is the context's handle */

static void violation(const char *format, ...) {
    size_t length = strlen(violations);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(violations + length, sizeof violations - length, format, arguments);
    va_end(arguments);
    length = strlen(violations);
    snprintf(violations + length, sizeof violations - length, "\n");
}

static void seed_from_environment(void) { /* VAULTML_GPU_FAIL=call:after:code,…  VAULTML_GPU_MEMORY=bytes */
    const char *given = getenv("VAULTML_GPU_FAIL"), *memory = getenv("VAULTML_GPU_MEMORY");
    if (memory) total_memory = strtoull(memory, NULL, 10);
    for (int i = 0; given && *given && i < FAULTS; i++) {
        sscanf(given, "%47[^:]:%d:%d", faults[i].name, &faults[i].after, &faults[i].code);
        given = strchr(given, ',');
        if (given) given++;
    }
}

/* The code that this call shall fail with, or OK. */
static int fault(const char *name) {
    for (int i = 0; i < FAULTS; i++)
        if (faults[i].name[0] && !strcmp(faults[i].name, name) && faults[i].after-- == 0) {
            faults[i].name[0] = 0;
            return faults[i].code;
        }
    return OK;
}

#define ENTER(name) do { pthread_mutex_lock(&lock); int code_ = fault(name); if (code_) return leave(code_); } while (0)
#define IN_CONTEXT() do { if (!depth) return leave(INVALID_CONTEXT); if (sticky) return leave(sticky); } while (0)
static int leave(int code) { pthread_mutex_unlock(&lock); return code; }

static struct block *find(const char *address, size_t size, enum kind kind) {
    for (struct block *b = blocks; b; b = b->next)
        if (b->kind == kind && address >= b->base && address < b->base + b->mapped)
            return !b->freed && address + size <= b->base + b->size ? b : NULL;
    return NULL;
}

static const char *why_not(const char *address, enum kind kind) {
    for (struct block *b = blocks; b; b = b->next)
        if (b->kind == kind && address >= b->base && address < b->base + b->mapped)
            return b->freed ? "was freed" : "is too small for it";
    return kind == HOST ? "is not page-locked" : "was never allocated";
}

static int check(const char *doing, const char *address, size_t size, enum kind kind) {
    if (find(address, size, kind)) return OK;
    violation("%s: %zu bytes of %s memory that %s", doing, size, kind == HOST ? "host" : "device", why_not(address, kind));
    return ILLEGAL_ADDRESS;
}

static int allocate(void **address, size_t size, enum kind kind) {
    if (!size) return INVALID_VALUE;
    if (kind == DEVICE && used_memory + size > total_memory) return OUT_OF_MEMORY;
    size_t mapped = (size + 2 * PAGE - 1) / PAGE * PAGE; /* a page behind each block belongs to nobody */
    char *base = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) return OUT_OF_MEMORY;
    struct block *b = calloc(1, sizeof *b);
    memset(base, POISON, size);
    *b = (struct block){ blocks, kind, base, size, mapped, 0 };
    blocks = b;
    if (kind == DEVICE) used_memory += size;
    *address = base;
    return OK;
}

static int release(char *address, enum kind kind, const char *call) {
    for (struct block *b = blocks; b; b = b->next)
        if (b->kind == kind && b->base == address && !b->freed) {
            b->freed = 1;
            if (kind == DEVICE) used_memory -= b->size;
            madvise(b->base, b->mapped, MADV_DONTNEED);
            mprotect(b->base, b->mapped, PROT_NONE);
            return OK;
        }
    violation("%s: an address that is not allocated", call);
    return INVALID_VALUE;
}

static int known_stream(struct stream *s) {
    for (struct stream *i = streams; i; i = i->next) if (i == s) return 1;
    return 0;
}

static int known_event(struct event *e) {
    for (struct event *i = events; i; i = i->next) if (i == e) return 1;
    return 0;
}

static struct op *defer(struct stream *s, enum what what) {
    struct op *o = calloc(1, sizeof *o);
    o->what = what;
    if (s->last) s->last->next = o; else s->first = o;
    s->last = o;
    return o;
}

/* Run the first operation of a stream; 0 when there is none, or it waits for an event that has not happened. */
static int step(struct stream *s) {
    struct op *o = s->first;
    if (!o || (o->what == WAIT && known_event(o->event) && o->event->done < o->generation)) return 0;
    s->first = o->next;
    if (!s->first) s->last = NULL;
    int code = OK;
    if (o->what == COPY_TO_DEVICE || o->what == COPY_TO_HOST) {
        int up = o->what == COPY_TO_DEVICE;
        const char *doing = up ? "copying to the device" : "copying to the host";
        code = check(doing, up ? o->to : o->from, o->size, DEVICE);
        if (!code) code = check(doing, up ? o->from : o->to, o->size, HOST);
        if (!code) memcpy(o->to, o->from, o->size);
    } else if (o->what == RECORD) {
        if (known_event(o->event) && o->event->done < o->generation) o->event->done = o->generation;
    } else if (o->what == CALL) {
        pthread_mutex_unlock(&lock); /* it may be Python, and need what the holder of the lock waits for */
        code = o->call(o->argument);
        pthread_mutex_lock(&lock);
    }
    if (code && !sticky) sticky = code;
    free(o);
    return 1;
}

static int step_others(struct stream *own) {
    for (struct stream *s = streams; s; s = s->next) if (s != own && step(s)) return 1;
    return 0;
}

static int step_any(struct stream *own) {
    return policy ? step(own) || step_others(own) : step_others(own) || step(own);
}

static int finished(struct stream *s, struct event *e, uint64_t generation) {
    return e ? e->done >= generation : !s->first;
}

static int run(struct stream *s, struct event *e, uint64_t generation) {
    while (!finished(s, e, generation)) {
        if (sticky) break;
        if (!step_any(s)) {
            violation("a wait that never ends");
            return UNKNOWN;
        }
    }
    return sticky;
}

/* ---- what pycuda calls ---- */

int cuInit(unsigned flags) {
    (void)flags;
    if (!initialized) seed_from_environment();
    ENTER("cuInit");
    initialized = 1;
    return leave(OK);
}
int cuDriverGetVersion(int *version) { *version = 13000; return OK; }
int cuDeviceGetCount(int *count) {
    ENTER("cuDeviceGetCount");
    *count = device_count;
    return leave(initialized ? OK : NOT_INITIALIZED);
}
int cuDeviceGet(int *device, int ordinal) {
    ENTER("cuDeviceGet");
    *device = ordinal;
    return leave(ordinal >= 0 && ordinal < device_count ? OK : INVALID_DEVICE);
}
int cuDeviceGetName(char *name, int size, int device) { (void)device; snprintf(name, size, "%s", device_name); return OK; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = total_memory; return OK; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : 1;
    return OK;
}
int cuDeviceComputeCapability(int *major, int *minor, int device) {
    (void)device;
    *major = capability / 10;
    *minor = capability % 10;
    return OK;
}
int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
    (void)device;
    for (int i = 0; i < 16; i++) uuid[i] = (unsigned char)(i * 17);
    return OK;
}
int cuDevicePrimaryCtxRetain(void **context, int device) {
    (void)device;
    ENTER("cuDevicePrimaryCtxRetain");
    retained++;
    *context = &primary;
    return leave(OK);
}
int cuDevicePrimaryCtxRelease_v2(int device) {
    (void)device;
    ENTER("cuDevicePrimaryCtxRelease");
    if (!retained) violation("the primary context is released more often than retained");
    else retained--;
    return leave(OK);
}
int cuCtxPushCurrent_v2(void *context) {
    ENTER("cuCtxPushCurrent");
    if (context != &primary || depth == DEPTH || !retained) return leave(INVALID_CONTEXT);
    current[depth++] = context;
    return leave(OK);
}
int cuCtxPopCurrent_v2(void **context) {
    ENTER("cuCtxPopCurrent");
    if (!depth) return leave(INVALID_CONTEXT);
    depth--;
    if (context) *context = current[depth];
    return leave(OK);
}
int cuCtxGetCurrent(void **context) { *context = depth ? current[depth - 1] : NULL; return OK; }
int cuCtxGetDevice(int *device) { *device = 0; return depth ? OK : INVALID_CONTEXT; }
int cuCtxSynchronize(void) {
    ENTER("cuCtxSynchronize");
    IN_CONTEXT();
    for (struct stream *s = streams; s; s = s->next) {
        int code = run(s, NULL, 0);
        if (code) return leave(code);
    }
    return leave(OK);
}
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    ENTER("cuMemGetInfo");
    IN_CONTEXT();
    *total = total_memory;
    *free_bytes = total_memory - used_memory;
    return leave(OK);
}
int cuMemAlloc_v2(void **address, size_t size) {
    ENTER("cuMemAlloc");
    IN_CONTEXT();
    return leave(allocate(address, size, DEVICE));
}
int cuMemFree_v2(char *address) {
    ENTER("cuMemFree");
    if (!depth) return leave(INVALID_CONTEXT);
    return leave(release(address, DEVICE, "cuMemFree"));
}
int cuMemHostAlloc(void **address, size_t size, unsigned flags) {
    (void)flags;
    ENTER("cuMemHostAlloc");
    IN_CONTEXT();
    return leave(allocate(address, size, HOST));
}
int cuMemFreeHost(char *address) {
    ENTER("cuMemFreeHost");
    if (!depth) return leave(INVALID_CONTEXT);
    return leave(release(address, HOST, "cuMemFreeHost"));
}
int cuStreamCreate(struct stream **stream, unsigned flags) {
    (void)flags;
    ENTER("cuStreamCreate");
    IN_CONTEXT();
    struct stream *s = calloc(1, sizeof *s);
    s->next = streams;
    streams = s;
    *stream = s;
    return leave(OK);
}
int cuStreamDestroy_v2(struct stream *stream) {
    ENTER("cuStreamDestroy");
    if (!depth) return leave(INVALID_CONTEXT);
    for (struct stream **i = &streams; *i; i = &(*i)->next)
        if (*i == stream) {
            if (stream->first && !sticky) violation("cuStreamDestroy: work is still under way");
            *i = stream->next;
            free(stream);
            return leave(OK);
        }
    return leave(INVALID_HANDLE);
}
int cuStreamSynchronize(struct stream *stream) {
    ENTER("cuStreamSynchronize");
    IN_CONTEXT();
    if (!known_stream(stream)) return leave(INVALID_HANDLE);
    return leave(run(stream, NULL, 0));
}
int cuStreamQuery(struct stream *stream) {
    ENTER("cuStreamQuery");
    IN_CONTEXT();
    if (!known_stream(stream)) return leave(INVALID_HANDLE);
    if (stream->first) step_any(stream);
    return leave(sticky ? sticky : stream->first ? NOT_READY : OK);
}
int cuStreamWaitEvent(struct stream *stream, struct event *event, unsigned flags) {
    (void)flags;
    ENTER("cuStreamWaitEvent");
    IN_CONTEXT();
    if (!known_stream(stream) || !known_event(event)) return leave(INVALID_HANDLE);
    struct op *o = defer(stream, WAIT);
    o->event = event;
    o->generation = event->recorded; /* as CUDA does: what was recorded by now; nothing recorded, nothing to wait for */
    return leave(OK);
}
int cuEventCreate(struct event **event, unsigned flags) {
    (void)flags;
    ENTER("cuEventCreate");
    IN_CONTEXT();
    struct event *e = calloc(1, sizeof *e);
    e->next = events;
    events = e;
    *event = e;
    return leave(OK);
}
int cuEventDestroy_v2(struct event *event) {
    ENTER("cuEventDestroy");
    if (!depth) return leave(INVALID_CONTEXT);
    for (struct event **i = &events; *i; i = &(*i)->next)
        if (*i == event) {
            *i = event->next;
            free(event);
            return leave(OK);
        }
    return leave(INVALID_HANDLE);
}
int cuEventRecord(struct event *event, struct stream *stream) {
    ENTER("cuEventRecord");
    IN_CONTEXT();
    if (!known_stream(stream) || !known_event(event)) return leave(INVALID_HANDLE);
    struct op *o = defer(stream, RECORD);
    o->event = event;
    o->generation = ++event->recorded;
    event->stream = stream;
    return leave(OK);
}
int cuEventQuery(struct event *event) {
    ENTER("cuEventQuery");
    IN_CONTEXT();
    if (!known_event(event)) return leave(INVALID_HANDLE);
    if (event->done < event->recorded && known_stream(event->stream)) step_any(event->stream);
    return leave(sticky ? sticky : event->done < event->recorded ? NOT_READY : OK);
}
int cuEventSynchronize(struct event *event) {
    ENTER("cuEventSynchronize");
    IN_CONTEXT();
    if (!known_event(event)) return leave(INVALID_HANDLE);
    if (!event->recorded) return leave(OK);
    return leave(run(event->stream, event, event->recorded));
}
int cuEventElapsedTime_v2(float *milliseconds, struct event *start, struct event *end) {
    ENTER("cuEventElapsedTime");
    IN_CONTEXT();
    if (!known_event(start) || !known_event(end)) return leave(INVALID_HANDLE);
    *milliseconds = 1;
    return leave(start->done && end->done ? OK : NOT_READY);
}
int cuEventElapsedTime(float *milliseconds, struct event *start, struct event *end) {
    return cuEventElapsedTime_v2(milliseconds, start, end);
}

static int copy(const char *name, struct stream *s, enum what what, char *to, char *from, size_t size) {
    ENTER(name);
    IN_CONTEXT();
    if (!known_stream(s)) return leave(INVALID_HANDLE);
    int up = what == COPY_TO_DEVICE;
    if (check(name, up ? to : from, size, DEVICE) || check(name, up ? from : to, size, HOST)) return leave(INVALID_VALUE);
    struct op *o = defer(s, what);
    o->to = to;
    o->from = from;
    o->size = size;
    return leave(OK);
}
int cuMemcpyHtoDAsync_v2(char *to, const void *from, size_t size, struct stream *s) {
    return copy("cuMemcpyHtoDAsync", s, COPY_TO_DEVICE, to, (char *)from, size);
}
int cuMemcpyDtoHAsync_v2(void *to, char *from, size_t size, struct stream *s) {
    return copy("cuMemcpyDtoHAsync", s, COPY_TO_HOST, to, from, size);
}
int cuGetErrorString(int code, const char **text) {
    static __thread char buffer[48];
    if (code == OUT_OF_MEMORY) *text = "out of memory";
    else if (code == ILLEGAL_ADDRESS) *text = "an illegal memory access was encountered";
    else { snprintf(buffer, sizeof buffer, "error %d", code); *text = buffer; }
    return OK;
}
int cuGetErrorName(int code, const char **text) { return cuGetErrorString(code, text); }

/* ---- what the test bed calls ---- */

/* Defer `call(argument)` on a stream, as a kernel; what it returns other than 0 breaks the context. */
int standin_launch(struct stream *stream, int (*call)(void *), void *argument) {
    pthread_mutex_lock(&lock);
    if (!depth || !known_stream(stream)) return leave(INVALID_HANDLE);
    struct op *o = defer(stream, CALL);
    o->call = call;
    o->argument = argument;
    return leave(OK);
}
/* OK when these bytes are live device memory; else a violation. */
int standin_check(const char *doing, char *address, size_t size) {
    pthread_mutex_lock(&lock);
    return leave(check(doing, address, size, DEVICE));
}
void standin_violation(const char *text) { pthread_mutex_lock(&lock); violation("%s", text); pthread_mutex_unlock(&lock); }
const char *standin_violations(void) { return violations; }
/* Let the call fail with `code` after `after` more that succeed. */
void standin_fail(const char *name, int after, int code) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < FAULTS; i++)
        if (!faults[i].name[0]) {
            snprintf(faults[i].name, sizeof faults[i].name, "%s", name);
            faults[i].after = after;
            faults[i].code = code;
            break;
        }
    pthread_mutex_unlock(&lock);
}
/* Whether every injected failure has happened. */
int standin_faults_left(void) {
    int left = 0;
    for (int i = 0; i < FAULTS; i++) left += faults[i].name[0] != 0;
    return left;
}
void standin_set(int own_first, size_t memory, int devices, int compute_capability) {
    policy = own_first;
    total_memory = memory;
    device_count = devices;
    capability = compute_capability;
}
/* Live: 0 device bytes, 1 host blocks, 2 streams, 3 events, 4 retained contexts, 5 operations under way. */
size_t standin_live(int kind) {
    pthread_mutex_lock(&lock);
    size_t count = kind == 0 ? used_memory : kind == 4 ? (size_t)retained : 0;
    if (kind == 1) for (struct block *b = blocks; b; b = b->next) count += b->kind == HOST && !b->freed;
    if (kind == 2) for (struct stream *s = streams; s; s = s->next) count++;
    if (kind == 3) for (struct event *e = events; e; e = e->next) count++;
    if (kind == 5) for (struct stream *s = streams; s; s = s->next) for (struct op *o = s->first; o; o = o->next) count++;
    pthread_mutex_unlock(&lock);
    return count;
}
/* As after a reboot. */
void standin_reset(void) {
    pthread_mutex_lock(&lock);
    memset(faults, 0, sizeof faults);
    violations[0] = 0;
    sticky = retained = 0;
    for (struct block *b = blocks; b;) {
        struct block *next = b->next;
        munmap(b->base, b->mapped);
        free(b);
        b = next;
    }
    blocks = NULL;
    streams = NULL;
    events = NULL;
    used_memory = 0;
    pthread_mutex_unlock(&lock);
}
