"""The numbers of Linux system calls on the two architectures that the sandbox knows.

`NUMBERS[name]` is the pair (x86_64, aarch64) from the kernel's `unistd.h`; None where an
architecture does not have the call. Only calls that the filter of
`trivium.llmos.sandbox.seccomp` names are listed: everything else is refused by number.
"""

from trivium.llmos.sandbox.libc import ARCHITECTURES

# Numbers at or above this were added after this table was written.
FIRST_UNKNOWN = 470

GROUPS: dict[str, str] = {
    "files": """
        read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 preadv:295:69
        pwritev:296:70 preadv2:327:286 pwritev2:328:287 lseek:8:62 close:3:57 close_range:436:436
        dup:32:23 dup2:33:- dup3:292:24 pipe:22:- pipe2:293:59 stat:4:- fstat:5:80 lstat:6:-
        newfstatat:262:79 statx:332:291 access:21:- faccessat:269:48 faccessat2:439:439
        readlink:89:- readlinkat:267:78 getcwd:79:17 chdir:80:49 fchdir:81:50 getdents:78:-
        getdents64:217:61 rename:82:- renameat:264:38 renameat2:316:276 mkdir:83:- mkdirat:258:34
        rmdir:84:- link:86:- linkat:265:37 unlink:87:- unlinkat:263:35 symlink:88:-
        symlinkat:266:36 umask:95:166 statfs:137:43 fstatfs:138:44 ftruncate:77:46
        fallocate:285:47 fsync:74:82 fdatasync:75:83 sync_file_range:277:84 flock:73:32
        fadvise64:221:223 readahead:187:213 sendfile:40:71 copy_file_range:326:285 poll:7:-
        ppoll:271:73 select:23:- pselect6:270:72 epoll_create:213:- epoll_create1:291:20
        epoll_ctl:233:21 epoll_wait:232:- epoll_pwait:281:22 epoll_pwait2:441:441 eventfd:284:-
        eventfd2:290:19 timerfd_create:283:85 timerfd_settime:286:86 timerfd_gettime:287:87
        signalfd:282:- signalfd4:289:74
    """,
    "memory": """
        mmap:9:222 mprotect:10:226 munmap:11:215 mremap:25:216 msync:26:227 madvise:28:233
        brk:12:214 membarrier:324:283 futex:202:98 futex_waitv:449:449 set_robust_list:273:99
        rseq:334:293 pkey_alloc:330:289 pkey_free:331:290 pkey_mprotect:329:288
    """,
    "process": """
        exit:60:93 exit_group:231:94 getpid:39:172 gettid:186:178 getppid:110:173 getuid:102:174
        geteuid:107:175 getgid:104:176 getegid:108:177 getresuid:118:148 getresgid:120:150
        getgroups:115:158 getpgrp:111:- getpgid:121:155 getsid:124:156 setpgid:109:154
        setsid:112:157 uname:63:160 sysinfo:99:179 times:100:153 getrusage:98:165
        getrlimit:97:163 setrlimit:160:164 getpriority:140:141 sched_yield:24:124
        sched_getaffinity:204:123 sched_getparam:143:121 sched_getscheduler:145:120
        sched_get_priority_max:146:125 sched_get_priority_min:147:126 getcpu:309:168
        wait4:61:260 waitid:247:95 set_tid_address:218:96 arch_prctl:158:- capget:125:90
        getrandom:318:278
    """,
    "time": """
        nanosleep:35:101 clock_nanosleep:230:115 clock_gettime:228:113 clock_getres:229:114
        gettimeofday:96:169 time:201:- alarm:37:- getitimer:36:102 setitimer:38:103
        timer_create:222:107 timer_settime:223:110 timer_gettime:224:108 timer_getoverrun:225:109
        timer_delete:226:111
    """,
    "signals": """
        rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigpending:127:136
        rt_sigtimedwait:128:137 rt_sigsuspend:130:133 sigaltstack:131:132 pause:34:-
        restart_syscall:219:128
    """,
    # Only on the two ends of a socketpair: no other socket can come into being.
    "sockets": """
        recvfrom:45:207 sendmsg:46:211 recvmsg:47:212 shutdown:48:210 getsockname:51:204
        getpeername:52:205 getsockopt:55:209
    """,
    "spawn": "fork:57:- vfork:58:- execve:59:221",
    # Landlock does not see these; they reach any file the user owns.
    "mode": "chmod:90:- fchmod:91:52 fchmodat:268:53 fchmodat2:452:452",
    "owner": "chown:92:- lchown:94:- fchown:93:55 fchownat:260:54",
    "times": "utime:132:- utimes:235:- futimesat:261:- utimensat:280:88",
    "identity": "setuid:105:146 setgid:106:144 setresuid:117:147 setresgid:119:149",
    "attributes": """
        getxattr:191:8 lgetxattr:192:9 fgetxattr:193:10 listxattr:194:11 llistxattr:195:12
        flistxattr:196:13 setxattr:188:5 lsetxattr:189:6 fsetxattr:190:7 removexattr:197:14
        lremovexattr:198:15 fremovexattr:199:16
    """,
    # Their structures cannot be read by a filter; programs fall back to the older call.
    "absent": "clone3:435:435 openat2:437:437 io_uring_setup:425:425",
    "by_argument": """
        open:2:- openat:257:56 creat:85:- truncate:76:45 ioctl:16:29 fcntl:72:25 prctl:157:167
        prlimit64:302:261 setpriority:141:140 personality:135:92 socketpair:53:199
        sendto:44:206 kill:62:129 tkill:200:130 tgkill:234:131 clone:56:220
    """,
}


def _read(text: str) -> dict[str, tuple[int | None, int | None]]:
    rows = (row.split(":") for row in text.split())
    return {
        name: (None if x86 == "-" else int(x86), None if arm == "-" else int(arm))
        for name, x86, arm in rows
    }


NUMBERS = {name: pair for text in GROUPS.values() for name, pair in _read(text).items()}


def names(*groups: str) -> tuple[str, ...]:
    return tuple(name for group in groups for name in _read(GROUPS[group]))


def number(name: str, machine: str) -> int | None:
    return NUMBERS[name][ARCHITECTURES.index(machine)]
