// Runs a script as Fiji does: reads its #@ parameters, converts and checks the values, supplies the
// services, blanks the #@ lines so that line numbers stay, and reports what happened as JSON.
// The services have the methods of SciJava's interfaces that scripts may use, and no others.

import groovy.json.JsonOutput
import groovy.json.JsonSlurper

class Recorder {
    List events = []
    void add(String kind, Object... what) { synchronized (events) { events << [kind, *what] } }
}

class StatusService {
    Recorder seen
    void showStatus(String message) { seen.add("status", message) }
    void showStatus(int progress, int maximum, String message) { seen.add("progress", progress, maximum, message) }
    void showProgress(int value, int maximum) { seen.add("progress", value, maximum, "") }
    void warn(String message) { seen.add("status", message) }
    void clearStatus() { seen.add("status", "") }
}

class LogService {
    Recorder seen
    void info(Object message) { seen.add("info", message.toString()) }
    void warn(Object message) { seen.add("warn", message.toString()) }
    void error(Object message) { seen.add("error", message.toString()) }
    void error(Object message, Throwable cause) { seen.add("error", message.toString()) }
    void debug(Object message) { }
}

class Task {
    Recorder seen
    String name
    int cancelAfter
    boolean cancelled
    private int updates = 0
    void start() { seen.add("task start", name) }
    void finish() { seen.add("task finish", name) }
    void setStatusMessage(String message) { update() }
    void setProgressValue(long value) { seen.add("task", value) }
    void setProgressMaximum(long value) { }
    boolean isCanceled() { cancelled }
    String getCancelReason() { cancelled ? "the user" : null }
    void cancel(String reason) { cancelled = true }
    private void update() { if (cancelAfter > 0 && ++updates >= cancelAfter) cancelled = true }
}

class TaskService {
    Recorder seen
    int cancelAfter
    boolean cancelled
    Task createTask(String name) { new Task(seen: seen, name: name, cancelAfter: cancelAfter, cancelled: cancelled) }
}

class UIService {
    Recorder seen
    boolean headless
    boolean isHeadless() { headless }
    Object showDialog(String message) { dialog(message, "") }
    Object showDialog(String message, String title) { dialog(message, title) }
    void show(Object thing) { seen.add("show", thing.toString()) }
    private Object dialog(String message, String title) {
        if (headless) throw new IllegalStateException("a dialog in headless mode: " + message)
        seen.add("dialog", message, title)
        null
    }
}

class Parameter {
    String kind, type, name
    Map attributes = [:]
    boolean isRequired() { attributes.required != "false" && attributes.visibility != "MESSAGE" }
}

class Parameters {
    static final SERVICES = ["StatusService", "LogService", "TaskService", "UIService"]

    static List<Parameter> of(String code) {
        code.readLines().findAll { it.startsWith("#@") }.collect { line ->
            def match = line =~ /^#@\s*(output)?\s*([\w.\[\]]+)\s*(?:\((.*)\))?\s+(\w+)\s*$/
            if (!match.matches()) throw new IllegalArgumentException("not a parameter line: " + line)
            new Parameter(kind: match.group(1) ?: "input", type: match.group(2), name: match.group(4),
                          attributes: attributes(match.group(3) ?: ""))
        }
    }

    static Map attributes(String text) {
        def found = [:]
        def match = text =~ /(\w+)\s*=\s*("(?:[^"\\]|\\.)*"|\{[^}]*\}|[^,\s]+)/
        def position = 0
        while (match.find()) {
            def between = text.substring(position, match.start())
            if (!(between ==~ /[\s,]*/)) throw new IllegalArgumentException("cannot read attributes: " + text)
            found[match.group(1)] = match.group(2).replaceAll(/^"|"$/, "")
            position = match.end()
        }
        if (!(text.substring(position) ==~ /\s*/)) throw new IllegalArgumentException("cannot read attributes: " + text)
        found
    }

    static Object convert(Parameter parameter, Object given) {
        def value = given == null ? parameter.attributes.value : given
        if (value == null || (value == "" && parameter.type != "String")) {
            if (parameter.required && parameter.type != "Boolean")
                throw new IllegalArgumentException("required parameter not given: " + parameter.name)
            return null
        }
        def choices = parameter.attributes.choices
        if (choices && !choices.findAll(/"([^"]*)"/) { it[1] }.contains(value))
            throw new IllegalArgumentException(value + " is not one of " + choices)
        switch (parameter.type) {
            case "File": return new File(value.toString())
            case "String": return value.toString()
            case "Integer": return value.toString() as Integer
            case "Double": return value.toString() as Double
            case "Boolean": return value.toString().toBoolean()
            case "ImagePlus": return ij.WindowManager.getImage(value.toString())
        }
        throw new IllegalArgumentException("the runner knows no type " + parameter.type)
    }
}

class Runner {
    String run(String request) {
        def wanted = new JsonSlurper().parseText(request)
        def seen = new Recorder()
        def answer = [error: null, outputs: [:], result: null]
        try {
            execute(wanted, seen, answer)
        } catch (Throwable error) {
            answer.error = error.message ?: error.toString()
            answer.kind = error.class.simpleName
            answer.trace = error.stackTrace.findAll { it.fileName?.endsWith("groovy") || it.fileName?.endsWith("lib") }
                .take(5)*.toString()
        }
        answer.events = seen.events
        JsonOutput.toJson(answer)
    }

    private void execute(Map wanted, Recorder seen, Map answer) {
        def file = new File(wanted.script)
        def code = file.getText("UTF-8")
        def parameters = Parameters.of(code)
        def unknown = wanted.parameters.keySet() - parameters*.name
        if (unknown) throw new IllegalArgumentException("the script has no parameter " + unknown)
        def binding = new Binding()
        binding.setVariable("javax.script.filename", file.path)
        parameters.findAll { it.kind == "input" }.each {
            def service = it.type in Parameters.SERVICES
            binding.setVariable(it.name, service ? this.service(it.type, wanted, seen) : Parameters.convert(it, wanted.parameters[it.name]))
        }
        def loader = new GroovyClassLoader(getClass().classLoader)
        (wanted.stubs ?: []).each { loader.parseClass(it) }
        binding.setVariable("seen", seen)
        def body = code.readLines().collect { it.startsWith("#@") ? "" : it }.join("\n")
        def result = new GroovyShell(loader, binding).evaluate(body, file.name)
        answer.result = result?.toString()
        parameters.findAll { it.kind == "output" }.each {
            def value = binding.hasVariable(it.name) ? binding.getVariable(it.name) : null
            answer.outputs[it.name] = value?.toString()
        }
    }

    private Object service(String type, Map wanted, Recorder seen) {
        switch (type) {
            case "StatusService": return new StatusService(seen: seen)
            case "LogService": return new LogService(seen: seen)
            case "TaskService": return new TaskService(seen: seen, cancelAfter: wanted.cancelAfter ?: 0, cancelled: wanted.cancelled ?: false)
            case "UIService": return new UIService(seen: seen, headless: wanted.headless ?: false)
        }
    }
}

new Runner()
