// The part of Appose's Java library that the script uses, in Groovy: it starts the real Python
// worker, speaks the real protocol, and shares real memory (Linux keeps it as files in /dev/shm).
package org.apposed.appose

import groovy.json.JsonOutput
import groovy.json.JsonSlurper
import java.nio.ByteBuffer
import java.nio.channels.FileChannel
import java.util.function.Consumer

class Appose {
    static Environment wrap(File folder) { new Environment(folder: folder) }
}

class Environment {
    File folder
    Service python() { new Service(new File(folder, "bin/python").path) }
}

class NDArray {
    enum DType {
        UINT8(1), UINT16(2), FLOAT32(4)
        final int bytes
        DType(int bytes) { this.bytes = bytes }
        static DType fromLabel(String label) { valueOf(label.toUpperCase()) }
    }
    static class Shape {
        enum Order { C_ORDER, F_ORDER }
        final int[] sizes
        Shape(Order order, int... sizes) { assert order == Order.C_ORDER; this.sizes = sizes }
    }
    final DType type
    final int[] sizes
    final File file
    NDArray(DType type, Shape shape) {
        this.type = type
        this.sizes = shape.sizes
        file = new File("/dev/shm", "clemreg-" + UUID.randomUUID())
        new RandomAccessFile(file, "rw").withCloseable { it.setLength(bytes()) }
    }
    NDArray(Map record) {
        type = DType.fromLabel(record.dtype)
        sizes = record.shape as int[]
        file = new File("/dev/shm", record.shm.name.replaceFirst("^/", ""))
    }
    long bytes() { (sizes as List).inject(type.bytes as long) { a, b -> a * b } }
    ByteBuffer buffer() {
        new RandomAccessFile(file, "rw").withCloseable { it.channel.map(FileChannel.MapMode.READ_WRITE, 0, bytes()) }
    }
    Map json() {
        [appose_type: "ndarray", dtype: type.name().toLowerCase(), shape: sizes as List,
         shm: [appose_type: "shm", name: file.name, rsize: bytes()]]
    }
    void close() { file.delete() }
}

enum TaskStatus {
    INITIAL, RUNNING, COMPLETE, CANCELED, FAILED
    boolean isFinished() { this in [COMPLETE, CANCELED, FAILED] }
}

class Service {
    final String python
    Process process
    Map tasks = [:]
    Service(String python) { this.python = python }
    Service start() {
        process = [python, "-c", "import appose.python_worker; appose.python_worker.main()"].execute()
        process.consumeProcessErrorStream(System.err)
        Thread.startDaemon { process.inputStream.eachLine("UTF-8") { hear(new JsonSlurper().parseText(it)) } }
        this
    }
    Task task(String script, Map inputs) { tasks["1"] = new Task(service: this, script: script, inputs: inputs) }
    void say(Map request) {
        process.outputStream.write((JsonOutput.toJson(plain(request)) + "\n").getBytes("UTF-8"))
        process.outputStream.flush()
    }
    void close() { process.outputStream.close() }
    static Object plain(Object value) {
        value instanceof NDArray ? value.json() : value instanceof Map ? value.collectEntries { k, v -> [k, plain(v)] } : value
    }
    private void hear(Map answer) {
        def task = tasks[answer.task]
        if (task == null || task.status.finished) return
        if (answer.outputs) task.outputs = answer.outputs.collectEntries { k, v -> [k, v instanceof Map && v.shm ? new NDArray(v) : v] }
        if (answer.maximum != null) { task.maximum = answer.maximum; task.current = answer.current; task.message = answer.message }
        if (answer.error) task.error = answer.error
        task.status = [COMPLETION: TaskStatus.COMPLETE, CANCELATION: TaskStatus.CANCELED, FAILURE: TaskStatus.FAILED][answer.responseType] ?: TaskStatus.RUNNING
        task.listeners.each { it.accept(answer) }
    }
}

class Task {
    Service service
    String script
    Map inputs
    Map outputs = [:]
    List listeners = []
    TaskStatus status = TaskStatus.INITIAL
    String message, error
    long current, maximum
    void listen(Consumer listener) { listeners << listener }
    void start() { service.say([task: "1", requestType: "EXECUTE", script: script, inputs: inputs]) }
    void cancel() { service.say([task: "1", requestType: "CANCEL"]) }
}
