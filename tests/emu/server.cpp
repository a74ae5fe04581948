// The emulated device: a process of its own, so that its memory is watched by ASan and its crash is an error of the device, not of the
// test. Reads commands from standard input and answers on standard output; the other end is tests/src/emu.rs.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <string>
#include <vector>

typedef unsigned int u32;
typedef unsigned long long u64;

namespace emu {

struct Index {
    u32 thread, threads, block[3], blocks[3];
};
Index index;
void* dynamic_shared;

static const size_t STACK = 512 << 10;
static const u32 MAX_THREADS = 1024;

struct Barrier {
    u32 arrived, generation;
};
// A place to go on from: __builtin_setjmp's frame, address and stack. Unlike swapcontext it makes no system call, and ASan, which would
// clear the shadow of the whole stack each time, does not see it.
typedef void* Place[5];
struct Fiber {
    Place place;
    char* stack;
    bool done;
};
static Fiber fibers[MAX_THREADS];
static Place scheduler;
static Barrier whole, wave[MAX_THREADS / MHC_WAVE];
static float lanes[MAX_THREADS];
static u32 current, progress, random_state = 1;
static void (*kernel)(const void*);
static const void* cells;

[[noreturn]] static void fail(const char* what) {
    fprintf(stderr, "emu: %s (block %u,%u thread %u)\n", what, index.block[0], index.block[1], current);
    fflush(stderr);
    abort();
}

static u32 draw() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state;
}

#define UNSEEN __attribute__((noinline, no_sanitize("address")))

[[noreturn]] UNSEEN static void go_on(Place& place) { __builtin_longjmp(place, 1); }

// From a thread of the block back to the scheduler, until that resumes the thread.
UNSEEN static void leave(Fiber& fiber) {
    if (__builtin_setjmp(fiber.place) == 0) go_on(scheduler);
}

// A thread that has not begun has a stack but no place: `first` enters its function.
UNSEEN static void resume(Fiber& fiber, ucontext_t* first) {
    if (__builtin_setjmp(scheduler) != 0) return;
    if (first) setcontext(first);
    go_on(fiber.place);
}

static void wait_at(Barrier& b, u32 members) {
    const u32 generation = b.generation;
    if (++b.arrived == members) {
        b.arrived = 0;
        ++b.generation;
        ++progress;
    }
    while (b.generation == generation) {
        const u32 me = current;
        leave(fibers[me]);
        current = me;
        index.thread = me;
    }
}

void block_barrier() { wait_at(whole, index.threads); }

void wave_barrier() {
    const u32 first = current / MHC_WAVE * MHC_WAVE, left = index.threads - first;
    wait_at(wave[current / MHC_WAVE], left < MHC_WAVE ? left : MHC_WAVE);
}

float exchange(float value, u32 from) {
    lanes[current] = value;
    wave_barrier();
    const float got = lanes[current / MHC_WAVE * MHC_WAVE + from];
    wave_barrier();
    return got;
}

// A thread of every block that is to come.
static void body() {
    for (;;) {
        kernel(cells);
        fibers[current].done = true;
        ++progress;
        leave(fibers[current]);
    }
}

static void begin(Fiber& f) {
    f.stack = (char*)mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (f.stack == MAP_FAILED) fail("no memory for stacks");
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = f.stack;
    context.uc_stack.ss_size = STACK;
    context.uc_link = nullptr;
    makecontext(&context, body, 0);
    resume(f, &context);
}

static void run_block() {
    const u32 n = index.threads;
    whole = {};
    memset(wave, 0, sizeof wave);
    for (u32 t = 0; t < n; ++t) fibers[t].done = false;
    for (u32 live = n; live > 0;) {
        const u32 before = progress, start = draw() % n, backwards = draw() & 1;
        live = 0;
        for (u32 k = 0; k < n; ++k) {
            const u32 t = (backwards ? start + n - k : start + k) % n;
            if (fibers[t].done) continue;
            current = t;
            index.thread = t;
            if (fibers[t].stack) resume(fibers[t], nullptr);
            else begin(fibers[t]);
            live += !fibers[t].done;
        }
        if (live > 0 && progress == before) fail("a barrier or a shuffle that not all threads reach");
    }
}

}  // namespace emu

static void read_all(void* to, size_t bytes) {
    if (bytes && fread(to, 1, bytes, stdin) != bytes) exit(0);
}

static u64 read_word() {
    u64 w;
    read_all(&w, sizeof w);
    return w;
}

static std::string read_text() {
    std::string s(read_word(), 0);
    read_all(&s[0], s.size());
    return s;
}

static void answer(u64 w) {
    fwrite(&w, sizeof w, 1, stdout);
    fflush(stdout);
}

struct Function {
    void (*entry)(const void*);
    u64 bytes, threads;
};

static void launch() {
    const Function& f = *(const Function*)read_word();
    emu::Index& ix = emu::index;
    for (u32& b : ix.blocks) b = (u32)read_word();
    ix.threads = (u32)read_word();
    const u64 shared = read_word(), count = read_word();
    std::vector<u64> args(count);
    read_all(args.data(), count * sizeof(u64));
    if (f.bytes != count * sizeof(u64)) emu::fail("the launch's arguments are not the kernel's struct");
    if (ix.threads == 0 || ix.threads > f.threads) emu::fail("more threads than the kernel was compiled for");
    if (ix.threads % MHC_WAVE != 0) emu::fail("a wave is not whole");
    emu::kernel = f.entry;
    emu::cells = args.data();
    for (ix.block[2] = 0; ix.block[2] < ix.blocks[2]; ++ix.block[2])
        for (ix.block[1] = 0; ix.block[1] < ix.blocks[1]; ++ix.block[1])
            for (ix.block[0] = 0; ix.block[0] < ix.blocks[0]; ++ix.block[0]) {
                // Fresh, so that nothing survives from block to block; not a number, so that what is read unwritten shows.
                emu::dynamic_shared = aligned_alloc(16, (shared + 15) / 16 * 16);
                memset(emu::dynamic_shared, 0xff, shared);
                emu::run_block();
                free(emu::dynamic_shared);
            }
    answer(0);
}

static void find() {
    const std::string path = read_text(), name = read_text();
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "emu: %s\n", dlerror());
        return answer(0);
    }
    void* entry = dlsym(library, name.c_str());
    const u64* bytes = (const u64*)dlsym(library, (name + "_bytes").c_str());
    const u64* threads = (const u64*)dlsym(library, (name + "_threads").c_str());
    answer(entry && bytes && threads ? (u64) new Function{(void (*)(const void*))entry, *bytes, *threads} : 0);
}

int main() {
    for (;;) {
        switch (read_word()) {
            case 'a': {
                const u64 bytes = read_word();
                void* p = nullptr;
                answer(posix_memalign(&p, 256, bytes) == 0 ? (u64)p : 0);
                if (p) memset(p, 0xff, bytes);
                break;
            }
            case 'f': free((void*)read_word()); break;
            case 'u': {
                char* to = (char*)read_word();
                read_all(to, read_word());
                break;
            }
            case 'd': {
                const char* from = (const char*)read_word();
                fwrite(from, 1, read_word(), stdout);
                fflush(stdout);
                break;
            }
            case 'c': {
                char* to = (char*)read_word();
                const char* from = (const char*)read_word();
                memcpy(to, from, read_word());
                answer(0);
                break;
            }
            case 'e': find(); break;
            case 'l': launch(); break;
            default: emu::fail("an unknown command");
        }
    }
}
