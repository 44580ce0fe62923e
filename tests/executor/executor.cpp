// The test executor's scheduler: fibers, barriers, warp operations, shared memory.
#include "include/executor.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace executor {

Dim3 thread_index, block_index, block_size, grid_size;

Settings& settings() {
  static Settings settings;
  return settings;
}

namespace {

constexpr size_t STACK_BYTES = 256 << 10;
constexpr int WARP = 32;

// ---------------------------------------------------------------------------------------------------- switching

#if defined(__x86_64__)
extern "C" void stitchkern_executor_switch(void** save, void* load);
asm(R"(
.text
.globl stitchkern_executor_switch
.hidden stitchkern_executor_switch
.type stitchkern_executor_switch, @function
stitchkern_executor_switch:
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
.size stitchkern_executor_switch, .-stitchkern_executor_switch
)");

struct Context {
  void* stack_pointer = nullptr;
  void start(char* stack, void (*entry)()) {
    auto* top = reinterpret_cast<uint64_t*>(stack + STACK_BYTES);
    *--top = 0;  // where a return address of entry would be: keeps its frame aligned
    *--top = reinterpret_cast<uint64_t>(entry);
    for (int i = 0; i < 6; ++i) *--top = 0;  // the saved registers
    stack_pointer = top;
  }
};
void switch_context(Context& from, Context& to) { stitchkern_executor_switch(&from.stack_pointer, to.stack_pointer); }
#else
struct Context {
  ucontext_t context;
  void start(char* stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack, context.uc_stack.ss_size = STACK_BYTES, context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
};
void switch_context(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
#endif

// ---------------------------------------------------------------------------------------------------- state

enum class State { ready, at_barrier, in_warp, done };

struct Fiber {
  Context context;
  char* stack = nullptr;
  State state = State::done;
  const char* where = "";  // what it waits in
  unsigned line = 0;
  void* argument = nullptr;
  int index = 0;
};

struct FreeMemory {
  void operator()(void* p) const { std::free(p); }
};

struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;
  Context scheduler;
  const void* scheduler_stack = nullptr;
  size_t scheduler_size = 0;
  Fiber* current = nullptr;
  int threads = 0;
  const std::function<void()>* body = nullptr;
  std::map<int, std::pair<int, std::unique_ptr<void, FreeMemory>>> shared;  // by offset: size, bytes
  int shared_bytes = 0;
  std::string error;
} machine;

void to_scheduler(bool leaving = false) {
  Fiber* self = machine.current;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(leaving ? nullptr : &fake, machine.scheduler_stack, machine.scheduler_size);
#endif
  switch_context(self->context, machine.scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  (void)leaving;
}

void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_stack, &machine.scheduler_size);
#endif
  (*machine.body)();
  Fiber& self = *machine.current;
  self.state = State::done, self.where = "", self.line = 0;
  to_scheduler(true);
  std::abort();  // nobody returns to a thread that is done
}

void resume(Fiber& fiber) {
  machine.current = &fiber;
  thread_index = {unsigned(fiber.index), 0, 0};
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, fiber.stack, STACK_BYTES);
#endif
  switch_context(machine.scheduler, fiber.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

std::string describe(const Fiber& f) {
  if (f.state == State::done) return "thread " + std::to_string(f.index) + " has left";
  return "thread " + std::to_string(f.index) + " waits in " + f.where + (f.line ? ":" + std::to_string(f.line) : "");
}

void order_of_turns(std::vector<int64_t>& turns, uint64_t seed) {
  std::iota(turns.begin(), turns.end(), 0);
  if (settings().order == reverse) std::reverse(turns.begin(), turns.end());
  if (settings().order == shuffled) std::shuffle(turns.begin(), turns.end(), std::mt19937_64(seed));
}

void run_block() {
  for (int i = 0; i < machine.threads; ++i) {
    Fiber& f = *machine.fibers[i];
    f.state = State::ready, f.index = i, f.where = "", f.line = 0;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(f.stack, STACK_BYTES);
#endif
    f.context.start(f.stack, fiber_main);
  }
  std::vector<int64_t> turns(machine.threads);
  order_of_turns(turns, block_index.x);
  for (;;) {
    bool any = false;
    for (const int64_t i : turns) {
      Fiber& f = *machine.fibers[i];
      if (f.state != State::ready) continue;
      any = true;
      resume(f);
      if (!machine.error.empty()) return;
    }
    if (any) continue;
    // nobody can go on: either all are done, or all are at one barrier, or the kernel is wrong
    const Fiber& first = *machine.fibers[0];
    bool same = true;
    for (int i = 1; i < machine.threads && same; ++i) {
      const Fiber& f = *machine.fibers[i];
      same = f.state == first.state && f.line == first.line && !std::strcmp(f.where, first.where);
      if (!same) machine.error = "threads part ways: " + describe(first) + ", " + describe(f);
    }
    if (first.state == State::in_warp && same) machine.error = "a warp operation never completed: " + describe(first);
    if (first.state == State::done || !machine.error.empty()) return;
    for (int i = 0; i < machine.threads; ++i) machine.fibers[i]->state = State::ready;
  }
}

}  // namespace

void fail(const char* message) {
  machine.error = std::string(message) + " (thread " + std::to_string(machine.current->index) + ")";
  to_scheduler(true);
  std::abort();
}

void* shared(int offset, int bytes) {
  if (offset + bytes > machine.shared_bytes) fail("a shared array lies beyond the shared memory that was asked for");
  auto& [size, data] = machine.shared[offset];
  if (!data) {
    size = bytes;
    data.reset(std::aligned_alloc(16, (size_t(bytes) + 15) / 16 * 16));
    std::memset(data.get(), 0xff, size_t(bytes));  // NaN in every floating-point type
  }
  if (size != bytes) fail("two shared arrays of different sizes start at one place");
  return data.get();
}

void sync_block(std::source_location where) {
  Fiber& self = *machine.current;
  self.state = State::at_barrier, self.where = "__syncthreads", self.line = where.line();
  to_scheduler();
}

void collective(const char* name, void* mine, void (*apply)(void* const* lanes)) {
  Fiber& self = *machine.current;
  self.state = State::in_warp, self.where = name, self.line = 0, self.argument = mine;
  const int base = self.index / WARP * WARP;
  if (base + WARP > machine.threads) fail("a warp operation in a warp of less than 32 threads");
  void* lanes[WARP];
  bool complete = true;
  for (int i = 0; i < WARP && complete; ++i) {
    const Fiber& f = *machine.fibers[base + i];
    complete = f.state == State::in_warp && !std::strcmp(f.where, name);
    lanes[i] = f.argument;
  }
  if (complete) {
    apply(lanes);
    for (int i = 0; i < WARP; ++i) machine.fibers[base + i]->state = State::ready;
  } else {
    to_scheduler();
  }
}

void launch(const char* kernel, int64_t blocks, int threads, int shared_bytes, const std::function<void()>& body) {
  if (blocks < 1 || threads < 1 || threads > 1024)
    throw std::runtime_error(std::string(kernel) + ": a launch of no or too many threads");
  while (int(machine.fibers.size()) < threads) {
    machine.fibers.push_back(std::make_unique<Fiber>());
    void* stack =
        mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) throw std::bad_alloc();
    machine.fibers.back()->stack = static_cast<char*>(stack);
  }
  machine.threads = threads, machine.body = &body, machine.shared_bytes = shared_bytes;
  block_size = {unsigned(threads), 1, 1}, grid_size = {unsigned(blocks), 1, 1};
  std::vector<int64_t> turns(blocks);
  order_of_turns(turns, 0);
  for (const int64_t block : turns) {
    block_index = {unsigned(block), 0, 0};
    machine.shared.clear();
    machine.error.clear();
    run_block();
    if (!machine.error.empty())
      throw std::runtime_error(std::string(kernel) + ", block " + std::to_string(block) + ": " + machine.error);
  }
  machine.shared.clear();
}

}  // namespace executor
