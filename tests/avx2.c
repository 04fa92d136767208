/* A library for LD_PRELOAD: the process sees this processor without AVX-512, VNNI and AMX, so that libraries which ask
   the processor (cpuid) take the kernels of AVX2. Linux on x86-64, on processors whose cpuid can be made to fault
   (Intel since Ivy Bridge). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012 /* asm/prctl.h: 0 lets cpuid fault, 1 lets it run */
#define BIT(n) (1u << (n))
enum { UNAVAILABLE = 99 }; /* exit code where cpuid cannot fault */

static struct sigaction others; /* what the rest of the process wants done on SIGSEGV */
static int installed;

static void let_cpuid_run(int allowed) { syscall(SYS_arch_prctl, ARCH_SET_CPUID, allowed); }

/* Leaf 7 of cpuid, Intel's manual 2A: which bits are taken away. */
static void hide(uint32_t leaf, uint32_t subleaf, uint32_t *a, uint32_t *b, uint32_t *c, uint32_t *d) {
    if (leaf == 7 && subleaf == 0) {
        *b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31)); /* AVX512 F … VL */
        *c &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14)); /* AVX512 VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ */
        *d &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25)); /* AVX512 …, AMX */
    } else if (leaf == 7 && subleaf == 1) {
        *a &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23)); /* AVX-VNNI, AVX512-BF16, AMX-FP16, AVX-IFMA */
        *d &= ~(BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19)); /* AVX-VNNI-INT8, …, AVX-VNNI-INT16, AVX10 */
    }
}

static void on_fault(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)registers[REG_RIP];
    if (info->si_code == SI_KERNEL && code[0] == 0x0f && code[1] == 0xa2) { /* cpuid */
        uint32_t leaf = registers[REG_RAX], subleaf = registers[REG_RCX], a, b, c, d;
        let_cpuid_run(1);
        __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "0"(leaf), "2"(subleaf));
        let_cpuid_run(0);
        hide(leaf, subleaf, &a, &b, &c, &d);
        registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
        registers[REG_RIP] += 2;
    } else if (others.sa_flags & SA_SIGINFO) {
        others.sa_sigaction(number, info, context);
    } else if (others.sa_handler != SIG_DFL && others.sa_handler != SIG_IGN) {
        others.sa_handler(number);
    } else {
        signal(SIGSEGV, SIG_DFL);
        raise(number);
    }
}

static int real_sigaction(int number, const struct sigaction *wanted, struct sigaction *old) {
    static int (*found)(int, const struct sigaction *, struct sigaction *);
    if (!found) found = dlsym(RTLD_NEXT, "sigaction");
    return found(number, wanted, old);
}

/* Others may handle SIGSEGV too (faulthandler does), behind us. */
int sigaction(int number, const struct sigaction *wanted, struct sigaction *old) {
    if (number != SIGSEGV || !installed) return real_sigaction(number, wanted, old);
    struct sigaction before = others;
    if (wanted) others = *wanted;
    if (old) *old = before;
    return 0;
}

__attribute__((constructor)) static void start(void) {
    struct sigaction ours;
    memset(&ours, 0, sizeof ours);
    ours.sa_sigaction = on_fault;
    ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    real_sigaction(SIGSEGV, &ours, &others);
    installed = 1;
    if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0)) {
        fprintf(stderr, "cpuid cannot fault on this processor\n");
        _exit(UNAVAILABLE);
    }
}
