#include "emulation.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <thread>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
extern "C" void __sanitizer_start_switch_fiber(void** save, const void* bottom, size_t size);
extern "C" void __sanitizer_finish_switch_fiber(void* save, const void** bottom, size_t* size);
#define ADDRESS_SANITIZER 1
#else
#define ADDRESS_SANITIZER 0
#endif

namespace emulation {
namespace {

constexpr size_t STACK = ADDRESS_SANITIZER ? 512 << 10 : 128 << 10;
constexpr unsigned MOST_THREADS = 1024;

struct Kernel {
    size_t params;
    unsigned threads;
    size_t shared;
    Entry entry;
};
std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> known;
    return known;
}

// ---- stacks of fibers, kept for the next launch ----

std::mutex spare_lock;
std::vector<char*> spare;

char* take_stack() {
    {
        std::lock_guard guard(spare_lock);
        if (!spare.empty()) {
            char* stack = spare.back();
            spare.pop_back();
            return stack;
        }
    }
    void* stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return stack == MAP_FAILED ? nullptr : static_cast<char*>(stack);
}

// ---- switching ----

#if defined(__x86_64__)
// Saves what a function has to preserve, and the stack pointer at `*save`; goes on at `to`.
extern "C" void laud_emulation_switch(void** save, void* to);
asm(R"(
.text
.p2align 4
.globl laud_emulation_switch
.hidden laud_emulation_switch
.type laud_emulation_switch, @function
laud_emulation_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size laud_emulation_switch, .-laud_emulation_switch
)");
void prepare(void** stack_pointer, char* stack, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + STACK);
    *--top = nullptr;  // the caller of `entry`; keeps the stack aligned as behind a call
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    *stack_pointer = top;
}
void switch_stacks(void** save, void* to) { laud_emulation_switch(save, to); }
#else
void prepare(void** stack_pointer, char* stack, void (*entry)()) {
    auto* context = reinterpret_cast<ucontext_t*>(stack);
    getcontext(context);
    context->uc_stack = {stack + sizeof *context, 0, STACK - sizeof *context};
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
    *stack_pointer = context;
}
void switch_stacks(void** save, void* to) {
    ucontext_t here;
    *save = &here;
    swapcontext(&here, static_cast<ucontext_t*>(to));
}
#endif

struct Random {
    uint64_t state;
    uint64_t next() {
        uint64_t z = state += 0x9e3779b97f4a7c15;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        return z ^ z >> 31;
    }
    unsigned below(unsigned n) { return unsigned(next() % n); }
};

struct Warp {
    uint32_t exited = 0;
    // Lanes that wait, by the lowest lane of their mask.
    Gathering waiting[32] = {};
    uint32_t arrived[32] = {};
};

struct Launch {
    uint3 grid, block;
    size_t shared_bytes;
    void** args;
    Entry entry;
    uint64_t seed;
    unsigned blocks;
    std::atomic<unsigned> next{0};
    std::atomic<bool> failed{false};
    std::atomic<uint64_t> copied{0}, multiplied{0};
    std::mutex lock;
    std::string error;
};

void give_up(Launch& launch, const std::string& error) {
    std::lock_guard guard(launch.lock);
    if (!launch.failed) launch.error = error;
    launch.failed = true;
}

struct Shared {
    const void* site;
    std::unique_ptr<unsigned char[]> bytes;
};

// One thread of the operating system and the thread block that it runs.
struct Worker {
    Launch& launch;
    unsigned threads;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<unsigned> ready;
    size_t ready_first = 0;
    Random random{0};
    bool eager = false;
    uint3 block{};
    unsigned char* dynamic = nullptr;
    std::vector<Shared> arrays;
    unsigned alive = 0, arrived = 0;
    int votes = 0, ballots[2] = {}, ballot_arrived[2] = {};
    unsigned phase = 0;
    uint64_t copied = 0, multiplied = 0;
    void* home = nullptr;
    void* home_fake = nullptr;
    const void* home_bottom = nullptr;
    size_t home_size = 0;

    explicit Worker(Launch& launch) : launch(launch), threads(launch.block.x * launch.block.y * launch.block.z) {}
    void run();
    void run_block(unsigned number);
    void wake(unsigned thread) {
        ready.push_back(thread);
        if (launch.seed == 0) return;
        size_t other = ready_first + random.below(unsigned(ready.size() - ready_first));
        std::swap(ready[other], ready.back());
    }
    Fiber* pick() {
        if (ready_first == ready.size()) return nullptr;
        Fiber* fiber = &fibers[ready[ready_first++]];
        if (ready_first >= 4096) {
            ready.erase(ready.begin(), ready.begin() + std::ptrdiff_t(ready_first));
            ready_first = 0;
        }
        return fiber;
    }
};

thread_local Worker* worker = nullptr;

void arrive(Fiber* fiber) {
    (void)fiber;
#if ADDRESS_SANITIZER
    const void* bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(fiber ? fiber->fake_stack : worker->home_fake, &bottom, &size);
    if (fiber && !worker->home_bottom) {
        worker->home_bottom = bottom;
        worker->home_size = size;
    }
#endif
}

// Leaves the running fiber (or the worker, if none runs) for `to` (or the worker). `ends`: never comes back.
void go(Fiber* to, bool ends) {
    Fiber* from = self;
    (void)ends;
#if ADDRESS_SANITIZER
    void** fake = ends ? nullptr : from ? &from->fake_stack : &worker->home_fake;
    __sanitizer_start_switch_fiber(fake, to ? to->stack : worker->home_bottom, to ? STACK : worker->home_size);
#endif
    self = to;
    switch_stacks(from ? &from->stack_pointer : &worker->home, to ? to->stack_pointer : worker->home);
    arrive(from);
}

void wait(const char* what) {
    Fiber* fiber = self;
    fiber->waits_for = what;
    Fiber* next = worker->pick();
    if (!next) fail(nullptr);
    go(next, false);
    fiber->waits_for = nullptr;
}

constexpr char BARRIER[] = "__syncthreads";

void release_barrier() {
    Worker& w = *worker;
    w.arrived = 0;
    w.phase ^= 1;
    w.ballots[w.phase] = w.ballot_arrived[w.phase] = 0;
    for (unsigned i = 0; i < w.threads; i++) {
        Fiber& fiber = w.fibers[i];
        if (!fiber.done && fiber.waits_for == BARRIER) w.wake(i);
    }
}

void body() {
    arrive(self);
    worker->launch.entry(worker->launch.args);
    Worker& w = *worker;
    self->done = true;
    if (!self->copies.empty()) fail("a thread ended with copies under way (cp.async without wait)");
    w.warps[self->linear / 32].exited |= 1u << self->linear % 32;
    w.alive--;
    if (w.alive && w.arrived == w.alive) release_barrier();
    Fiber* next = w.alive ? w.pick() : nullptr;
    if (w.alive && !next) fail(nullptr);
    go(next, true);
}

std::string deadlock() {
    std::string text = "deadlock:";
    unsigned shown = 0, more = 0;
    for (unsigned i = 0; i < worker->threads; i++) {
        Fiber& fiber = worker->fibers[i];
        if (fiber.done) continue;
        if (shown++ < 4) {
            text += " thread " + std::to_string(i) + " waits at " + (fiber.waits_for ? fiber.waits_for : "nothing") + ",";
        } else {
            more++;
        }
    }
    if (more) text += " and " + std::to_string(more) + " more,";
    return text + " the others never come";
}

void Worker::run() {
    worker = this;
    fibers.resize(threads);
    for (Fiber& fiber : fibers) {
        fiber.stack = take_stack();
        if (!fiber.stack) give_up(launch, "no memory for the stack of a thread");
    }
    for (unsigned number; !launch.failed && (number = launch.next++) < launch.blocks;) run_block(number);
    launch.copied += copied;
    launch.multiplied += multiplied;
    {
        std::lock_guard guard(spare_lock);
        for (Fiber& fiber : fibers) {
            if (!fiber.stack) continue;
            // Behind an error there are frames of unfinished functions on it, which AddressSanitizer remembers.
            if (launch.failed) {
                munmap(fiber.stack, STACK);
            } else {
                spare.push_back(fiber.stack);
            }
        }
    }
    worker = nullptr;
    self = nullptr;
}

void Worker::run_block(unsigned number) {
    random.state = launch.seed * 0x9e3779b97f4a7c15 + number;
    eager = launch.seed % 2 == 1;
    // A permutation of the thread blocks: another place to start, and backwards every other time.
    if (launch.seed) {
        number = unsigned((number + launch.seed) % launch.blocks);
        if (launch.seed & 2) number = launch.blocks - 1 - number;
    }
    block = {number % launch.grid.x, number / launch.grid.x % launch.grid.y,
             number / (launch.grid.x * launch.grid.y)};
    // Exactly as long as asked for, so that AddressSanitizer sees the end; aligned as on the device.
    void* memory = nullptr;
    if (launch.shared_bytes && posix_memalign(&memory, 128, launch.shared_bytes))
        return give_up(launch, "no memory for the shared memory of a thread block");
    std::unique_ptr<void, void (*)(void*)> owner(memory, std::free);
    if (memory) std::memset(memory, 0xa5, launch.shared_bytes);
    dynamic = static_cast<unsigned char*>(memory);
    arrays.clear();
    warps.assign((threads + 31) / 32, Warp{});
    ready.clear();
    ready_first = 0;
    alive = threads;
    arrived = 0;
    phase = 0;
    ballots[0] = ballots[1] = ballot_arrived[0] = ballot_arrived[1] = 0;
    for (unsigned i = 0; i < threads; i++) {
        Fiber& fiber = fibers[i];
        fiber.index = {i % launch.block.x, i / launch.block.x % launch.block.y, i / (launch.block.x * launch.block.y)};
        fiber.linear = i;
        fiber.done = false;
        fiber.waits_for = nullptr;
        fiber.groups = 0;
        fiber.copies.clear();
        fiber.fake_stack = nullptr;
        prepare(&fiber.stack_pointer, fiber.stack, body);
        wake(i);
    }
    for (unsigned i = threads; i < warps.size() * 32; i++) warps[i / 32].exited |= 1u << i % 32;
    go(pick(), false);
}

}  // namespace

thread_local Fiber* self = nullptr;

bool add(const char* name, size_t params, unsigned threads, size_t shared, Entry entry) {
    kernels()[name] = {params, threads, shared, entry};
    return true;
}

void fail(const char* what) {
    uint3 b = worker->block;
    give_up(worker->launch, "thread block (" + std::to_string(b.x) + ", " + std::to_string(b.y) + ", " +
                                std::to_string(b.z) + "): " + (what ? std::string(what) : deadlock()));
    // The fibers are left where they are; kernels own nothing that would have to be released.
    go(nullptr, true);
    std::abort();
}

void pause() {
    if (worker->launch.failed) fail("another thread block has failed");
    std::this_thread::yield();
}

void count_products(unsigned products) { worker->multiplied += products; }

uint3 block_index() { return worker->block; }
uint3 block_size() { return worker->launch.block; }
uint3 grid_size() { return worker->launch.grid; }
unsigned char* dynamic_shared() { return worker->dynamic; }

void* shared(const void* site, size_t bytes) {
    for (Shared& array : worker->arrays)
        if (array.site == site) return array.bytes.get();
    worker->arrays.push_back({site, std::unique_ptr<unsigned char[]>(new unsigned char[bytes])});
    std::memset(worker->arrays.back().bytes.get(), 0xa5, bytes);
    return worker->arrays.back().bytes.get();
}

int barrier(int vote, Vote how) {
    Worker& w = *worker;
    unsigned phase = w.phase;
    w.ballots[phase] += vote != 0;
    w.ballot_arrived[phase]++;
    if (++w.arrived == w.alive) {
        release_barrier();
    } else {
        wait(BARRIER);
    }
    int yes = w.ballots[phase], all = w.ballot_arrived[phase];
    switch (how) {
        case Vote::Or: return yes > 0;
        case Vote::And: return yes == all;
        default: return yes;
    }
}

void together(uint32_t mask, void* operand, const char* what, Work work, const void* context) {
    Worker& w = *worker;
    Warp& warp = w.warps[self->linear / 32];
    unsigned l = lane();
    if (!(mask >> l & 1)) fail("warp operation: the lane is not in its own mask");
    if (w.threads % 32 != 0 && self->linear / 32 == w.warps.size() - 1) mask &= (1u << w.threads % 32) - 1;
    if (mask & warp.exited) fail("warp operation: the mask names a lane that has ended");
    unsigned slot = unsigned(__builtin_ctz(mask));
    Gathering& lanes = warp.waiting[slot];
    if (warp.arrived[slot] && lanes.mask != mask) fail("warp operation: lanes disagree on the mask");
    lanes.mask = mask;
    lanes.operand[l] = operand;
    warp.arrived[slot] |= 1u << l;
    if (warp.arrived[slot] != mask) return wait(what);
    Gathering all = lanes;
    warp.arrived[slot] = 0;
    work(all, context);
    unsigned first = self->linear - l;
    for (unsigned i = 0; i < 32; i++)
        if (mask >> i & 1 && i != l) w.wake(first + i);
}

float f16_to_f32(uint16_t bits) {
    static const std::vector<float> table = [] {
        std::vector<float> table(1 << 16);
        for (unsigned i = 0; i < table.size(); i++) {
            uint16_t bits = uint16_t(i);
            _Float16 x;
            std::memcpy(&x, &bits, 2);
            table[i] = float(x);
        }
        return table;
    }();
    return table[bits];
}

namespace {
void land(const Copy& copy) {
    std::memcpy(copy.to, copy.from, copy.valid);
    std::memset(static_cast<char*>(copy.to) + copy.valid, 0, 16 - copy.valid);
}
}  // namespace

void copy_async(void* to, const void* from, unsigned valid) {
    if (valid > 16) fail("cp.async: more than 16 bytes");
    if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16)
        fail("cp.async: an address is not a multiple of 16");
    worker->copied += valid;
    Copy copy{to, from, valid, self->groups};
    if (worker->eager) return land(copy);
    self->copies.push_back(copy);
}

void copy_wait(unsigned left) {
    auto& copies = self->copies;
    size_t landed = 0;
    while (landed < copies.size() && copies[landed].group + left < self->groups) land(copies[landed++]);
    copies.erase(copies.begin(), copies.begin() + std::ptrdiff_t(landed));
}

void load_matrices(uint32_t (&m)[4], const void* row) {
    if (reinterpret_cast<uintptr_t>(row) % 16) fail("ldmatrix: an address is not a multiple of 16");
    MatrixOperand operand{row, m};
    together(~0u, &operand, "ldmatrix", [](const Gathering& lanes, const void*) {
        for (unsigned l = 0; l < 32; l++) {
            for (unsigned i = 0; i < 4; i++) {
                auto* row = static_cast<const char*>(static_cast<MatrixOperand*>(lanes.operand[8 * i + l / 4])->row);
                std::memcpy(static_cast<MatrixOperand*>(lanes.operand[l])->words + i, row + 4 * (l % 4), 4);
            }
        }
    });
}

}  // namespace emulation

// ---- what Rust calls ----------------------------------------------------------------------------------------------------

using namespace emulation;

extern "C" const char* laud_emulation_launch(const char* name, size_t name_len, const unsigned* grid,
                                             const unsigned* block, size_t shared_bytes, void** args, unsigned threads,
                                             uint64_t seed, uint64_t* counts) {
    auto error = [](const std::string& text) -> const char* { return strdup(text.c_str()); };
    auto found = kernels().find(std::string(name, name_len));
    if (found == kernels().end()) return error("no such kernel");
    const Kernel& kernel = found->second;
    Launch launch{};
    launch.grid = {grid[0], grid[1], grid[2]};
    launch.block = {block[0], block[1], block[2]};
    launch.shared_bytes = shared_bytes;
    launch.args = args;
    launch.entry = kernel.entry;
    launch.seed = seed;
    uint64_t blocks = uint64_t(grid[0]) * grid[1] * grid[2], size = uint64_t(block[0]) * block[1] * block[2];
    if (blocks == 0 || grid[0] > 0x7fffffffu || grid[1] > 65535 || grid[2] > 65535 || blocks > 0xffffffffu)
        return error("the grid is empty or too large");
    if (size == 0 || size > MOST_THREADS || block[2] > 64) return error("the thread block is empty or too large");
    if (kernel.threads ? size != kernel.threads : size % 32 != 0) return error("the thread block has another size");
    if (shared_bytes < kernel.shared) return error("too little shared memory");
    if (shared_bytes > 227 << 10) return error("more than 227 KiB of shared memory");
    launch.blocks = unsigned(blocks);
    if (threads == 0) threads = 1;
    if (threads > blocks) threads = unsigned(blocks);
    std::vector<std::thread> others;
    for (unsigned i = 1; i < threads; i++) others.emplace_back([&] { Worker(launch).run(); });
    Worker(launch).run();
    for (std::thread& other : others) other.join();
    counts[0] = launch.copied;
    counts[1] = launch.multiplied;
    return launch.failed ? error(launch.error) : nullptr;
}

extern "C" void laud_emulation_free(const char* error) { std::free(const_cast<char*>(error)); }

struct KernelInfo {
    const char* name;
    size_t params, threads, shared;
};

// Describes kernel number `i` in the order of names; false behind the last.
extern "C" bool laud_emulation_kernel(size_t i, KernelInfo* info) {
    for (auto& [name, kernel] : kernels()) {
        if (i-- == 0) {
            *info = {name.c_str(), kernel.params, kernel.threads, kernel.shared};
            return true;
        }
    }
    return false;
}
